"""A process that ends without looking through its whole memory for cycles first."""

from __future__ import annotations

import atexit
import gc


def end_quickly() -> None:
    """Have the interpreter's collections at exit pass over what is there by then.

    Of the three quarters of a million objects that vLLM's imports leave they find nothing worth
    having, several times over, while somebody waits for the end. Nothing else changes: exit
    handlers run, files are flushed.
    """
    atexit.unregister(gc.freeze)  # once is enough
    atexit.register(gc.freeze)
