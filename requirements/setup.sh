#!/bin/sh
# Make the virtual environment: `sh requirements/setup.sh .venv`, from the root of a checkout.
# Lists named after it are all that is installed there beside torch: `sh requirements/setup.sh
# .lengthwise/lmdeploy lmdeploy`. $PYTHON, where set, is the only Python tried.
set -eu
venv=$1
shift

say() { echo "setup: $*" >&2; }

# A name on PATH is no interpreter yet: version managers leave shims that fail.
runs() {
    "$1" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else
        set -- python3.11 python3.12 python3.13 python3; fi
    for candidate; do
        if runs "$candidate"; then echo "$candidate"; return; fi
    done
    say "none of these is a Python 3.11 to 3.13 that runs and has venv: $*"
    return 1
}

# PyTorch hands its own folder to the linker unquoted, so it may not lie below a space.
without_space() {
    for parent in "${XDG_CACHE_HOME:-}" "${HOME:+$HOME/.cache}" "${TMPDIR:-/tmp}" /tmp; do
        case $parent in '' | *[[:space:]]*) continue ;; esac
        place="$parent/lengthwise/$(basename "$venv")-$(pwd | cksum | cut -d' ' -f1)"
        if mkdir -p "$place" 2>/dev/null; then echo "$place"; return; fi
    done
    say "no folder without a space to put the environment in; set XDG_CACHE_HOME to one"
    return 1
}

if ! runs "$venv/bin/python"; then
    python=$(find_python)
    mkdir -p "$(dirname "$venv")"
    say "$("$python" -c 'import sys; print("Python", sys.version.split()[0], sys.executable)')"
    case $PWD in *[[:space:]]*)
        place=$(without_space)
        say "the path has a space, which PyTorch's compiler does not bear: $venv leads to $place"
        rm -rf "$venv"
        ln -s "$place" "$venv" ;;
    esac
    "$python" -m venv --clear "$(readlink -f "$venv")"
fi
py="$(readlink -f "$venv")/bin/python"
install() { "$py" -m pip --disable-pip-version-check install -q "$@"; }

# CPU torch comes first: with it in place nothing pulls the CUDA build.
torch=$(cat requirements/torch.txt) # torch==X.Y.Z+cpu
plain=${torch%+cpu}
installed=$("$py" -c 'from importlib.metadata import version
print("torch==" + version("torch"))' 2>/dev/null || true)
if [ "${installed%%+*}" = "$plain" ]; then
    say "$installed is there"
elif install "$torch"; then
    say "$torch from where pip looks"
elif say "pip knows no $torch; trying uv, which knows PyTorch's CPU index" &&
    install uv && "$py" -m uv pip install -q --python "$py" --torch-backend=cpu "$plain"; then
    say "$plain for CPU, by uv"
elif say "uv had no luck either; taking pip's own $plain, on Linux the (large) CUDA build" &&
    install "$plain"; then
    say "$plain from where pip looks; it runs on CPU too"
else
    say "$plain cannot be had: no index that pip or uv reaches holds it"
    exit 1
fi

# The rest is one list that ran together, so nothing is resolved.
for list; do install --no-deps -r "requirements/$list.txt"; done
test $# -eq 0 || exit 0
install --no-deps -r requirements/pinned.txt -r requirements/dev.txt -r requirements/fleet.txt
install --no-deps --no-build-isolation -e .
