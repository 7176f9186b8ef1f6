"""Where lengthwise keeps what it makes: MLflow's home, runs, caches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from lengthwise.data.errors import InputError, shown

HOME_VARIABLE = "LENGTHWISE_HOME"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A directory and the fixed places under it; nothing is created until it is written to.

    ``mlruns/`` holds MLflow's database and artifacts, ``runs/`` one directory per training or
    bench run, ``.lengthwise/`` whatever can be made again (tiny model, downloads, profiles).
    """

    root: Path

    @classmethod
    def current(cls) -> Workspace:
        """The workspace of ``$LENGTHWISE_HOME``, else of the current directory.

        InputError where the variable names nobody's home, or the directory is gone.
        """
        named = os.environ.get(HOME_VARIABLE)
        try:
            return cls(Path(named or Path.cwd()).expanduser().absolute())
        except RuntimeError as error:
            raise InputError(f"${HOME_VARIABLE} must name a folder, got {shown(named)}") from error
        except FileNotFoundError as error:
            raise InputError("the current folder is gone; change to one that is there") from error

    @property
    def mlruns(self) -> Path:
        """MLflow's home."""
        return self.root / "mlruns"

    @property
    def database(self) -> Path:
        """MLflow's SQLite file."""
        return self.mlruns / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifact root."""
        return self.mlruns / "artifacts"

    @property
    def runs(self) -> Path:
        """Outputs and logs of trainings and benches, a directory each."""
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        """Things that can be made again."""
        return self.root / ".lengthwise"

    def new_run_dir(self, kind: str) -> Path:
        """Create and return ``runs/<kind>-<UTC time>-<4 hex digits>``."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        path = self.runs / f"{kind}-{stamp}-{os.urandom(2).hex()}"
        path.mkdir(parents=True)
        return path
