"""Fits of the served model's length residual, beside the engine's loop."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lengthwise.predictor.serving.online_lengths import OnlineLengths, Refit, refit
from lengthwise.predictor.serving.residual import warm_up
from lengthwise.scheduler.serving.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

_LEAST_BETWEEN_S = 5.0  # a fit takes a tenth of a second of a core


class LengthFits:
    """Asks the lengths now and then whether they want a fit, and has it made.

    ``wanted`` False: never. A thread makes it, or, with ``in_thread`` off, the caller at once, as
    a clock that stands still meanwhile asks.
    """

    def __init__(self, wanted: bool, in_thread: bool) -> None:
        if wanted:
            warm_up()  # compiled while serving it held a step on an H200 for .2 s
        self._wanted = wanted
        self._in_thread = in_thread
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="length-residual")
        self._work: tuple[OnlineLengths, Future[Refit]] | None = None
        self._not_before_s = 0.0

    def poll(self, lengths: OnlineLengths, now_s: float) -> None:
        """Take over a fit that is done; begin one when it is due. Raises what a fit raised."""
        if self._work is not None:
            of, work = self._work
            if not work.done():
                return
            self._work = None
            if of is lengths:  # else they were forgotten meanwhile
                self._adopt(lengths, work.result())
        if not self._wanted or now_s < self._not_before_s:
            return
        misses = lengths.to_fit()
        if misses is None:
            return
        self._not_before_s = now_s + _LEAST_BETWEEN_S
        in_force = lengths.in_force
        if self._in_thread:
            self._work = lengths, self._pool.submit(refit, misses, in_force)
        else:
            self._adopt(lengths, refit(misses, in_force))

    def status(self, lengths: OnlineLengths) -> dict[str, Any]:
        """Plain values for the status endpoint."""
        return {
            "wanted": self._wanted,
            "in_force": lengths.in_force,
            "fits": lengths.fits,
            "answers": lengths.answers,
        }

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _adopt(self, lengths: OnlineLengths, found: Refit) -> None:
        before = lengths.in_force
        lengths.adopt(found)
        if lengths.in_force != before:
            logger.info(
                "lengthwise length residual %s after %d answers",
                "in force" if lengths.in_force else "no longer in force",
                lengths.answers,
            )
