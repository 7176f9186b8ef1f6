"""What the documents show is there: links resolve, commands and their options exist."""

import re
from pathlib import Path

import pytest
from command_lines import unknown_in

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("examples", "*"))
    for path in (ROOT / folder).glob(pattern)
    if path.is_file()
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```[^\n]*\n(.*?)^```|^((?: {4}\S[^\n]*\n)+)|`([^`\n]+)`", re.M | re.S)
COMMAND = re.compile(
    r"(?<![\w.@:-])(?:\S*bin/)?lengthwise (?!import\b)((?:data )?[a-z]+\b[^`|&#>;')\n]*)"
)


def anchors(path):
    """The headings of a page as a link names them."""
    lines = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for title in re.findall(r"^#+ (.+)$", lines, flags=re.M):
        yield re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def code_of(path):
    """Everything that is code: a page's blocks and spans, another file without its prose."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return [re.sub(r"^# \S.*$", "", text, flags=re.M)]
    return ["".join(groups) for groups in CODE.findall(text)]


def commands_of(path):
    for code in code_of(path):
        for line in re.sub(r"\\\n\s*", " ", code).splitlines():
            yield from COMMAND.findall(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(page):
    if page.suffix != ".md":
        return
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor and file.suffix == ".md":
            assert anchor in set(anchors(file)), f"{page.name}: {target} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_shown_exists(page):
    for command in commands_of(page):
        wrong = unknown_in(command)
        assert wrong is None, f"{page.name}: `lengthwise {command}`: no {wrong}"


def test_the_modules_that_are_run_exist():
    for page in PAGES:
        for code in code_of(page):
            for module in re.findall(r"python -m (benchmarks[\w.]*)", code):
                path = ROOT / module.replace(".", "/")
                found = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
                assert found, f"{page}: {module}"


def test_the_check_finds_what_is_wrong():
    assert unknown_in("trian --pack gpt35") == "trian"
    assert unknown_in("train --pak gpt35") == "--pak"
    assert unknown_in("data describe DIR --jsn") == "--jsn"
    assert unknown_in("train --pack=gpt35 --no-register  # a comment --odd") is None
    assert unknown_in("serve tiny --max-num-seqs 64") is None
    assert sum(1 for _ in commands_of(ROOT / "README.md")) > 5


def test_every_page_is_reached_from_the_readme():
    """A page that nobody links is a page that nobody reads."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page.resolve())
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            file = page.parent / target.partition("#")[0]
            if file.suffix == ".md" and file.exists() and file.resolve() not in reached:
                todo.append(file)
    assert set((ROOT / "docs").rglob("*.md")) <= reached
