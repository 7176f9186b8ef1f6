"""A server's run files: settings, live file, metrics folder, in a folder of their own.

They lie in the workspace, which nothing sweeps as it does a temporary folder, and whatever goes
missing while the server runs is made again (``heal``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.server.parent_watch import KEPT_SUFFIX


class RunFiles:
    """Files that were written through here, and the folder of Prometheus's counters.

    The counters are mapped files that their processes never open again. So each has a second
    link beside the folder, from which a folder that was removed is filled again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._texts: dict[str, str] = {}
        self._links = folder.with_name(folder.name + KEPT_SUFFIX)
        self.metrics_folder.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_folder(self) -> Path:
        """Where the processes of the server keep their counters."""
        return self.folder / "metrics"

    def path(self, name: str) -> Path:
        """Where the file of this name lies."""
        return self.folder / name

    def write(self, name: str, text: str) -> Path:
        """Write a file and keep its text; OSError when that cannot be."""
        self._texts[name] = text
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{name}.{os.getpid()}")
        try:
            staged.write_text(text, encoding="utf-8")
            staged.replace(path)  # whoever reads it sees the whole
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return path

    def heal(self) -> list[str]:
        """Make again what is missing, note what was changed; the names of what was missing."""
        missing = []
        for name, text in list(self._texts.items()):
            try:
                self._texts[name] = self.path(name).read_text(encoding="utf-8")
            except FileNotFoundError:
                self.write(name, text)
                missing.append(name)
        if self.metrics_folder.is_dir():
            self._keep_counters()
        else:
            self.metrics_folder.mkdir(parents=True)
            for kept in _entries(self._links):
                os.link(kept, self.metrics_folder / kept.name)
            missing.append(self.metrics_folder.name)
        return missing

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._links, ignore_errors=True)

    def _keep_counters(self) -> None:
        counters = {path.name: path for path in _entries(self.metrics_folder)}
        kept = {path.name: path for path in _entries(self._links)}
        for name in counters.keys() - kept.keys():
            with contextlib.suppress(OSError):  # no links on this file system, or gone by now
                self._links.mkdir(exist_ok=True)
                os.link(counters[name], self._links / name)
        for name in kept.keys() - counters.keys():  # vLLM removed those of a process that ended
            kept[name].unlink(missing_ok=True)


def make_run_files(*parents: Path) -> RunFiles:
    """Run files in a new folder of the first of ``parents`` that can be written to.

    Raises InputError, which names them all, when none can: read only, or the disk is full.
    """
    refused = []
    for parent in parents:
        folder = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"server-{os.getpid()}-"))
            files = RunFiles(folder)
            probe = folder / "probe"
            probe.write_bytes(bytes(65_536))  # a full disk still makes folders and empty files
            probe.unlink()
            return files
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            refused.append(f"{parent}: {error.strerror or error}")
    raise InputError(f"no room for the server's run files: {'; '.join(refused)}")


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
