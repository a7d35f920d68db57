"""One HTTP request as it is watched: its tokens and times, and its end as a line of the log.

    {"message": "request", "request_id": "chatcmpl-...", "model": "tiny-math:gated",
     "mode": "gated", "version": "tiny-math@53fec42d81de", "outcome": "ok", "status": 200,
     "generated": 71, "gated": 4, "first_token_seconds": 0.021, "seconds": 0.43}

What is counted here for the log is counted for the metrics in the same breath, so both agree with
each other and with what the clients got.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from serving.metrics import METRICS, UNKNOWN, Labels, Series
from vllm_gate.base_top_tokens import DEPTH
from vllm_gate.token_report import TracedToken

logger = logging.getLogger("serving.requests")

SHED = (429, 503)  # come again later


class Watch:
    """Of one request."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.series: Series | None = None  # of the version that answers
        self.model: str | None = None  # as the client calls it
        self.version: str | None = None  # NAME@HASH; None: the base
        self.request_id: str | None = None
        self.generated = 0
        self.gated = 0
        self.first_token: float | None = None  # seconds

    def bind(self, model: str | None, version: str | None, mode: str) -> None:
        """It has been admitted."""
        self.model, self.version = model, version
        self.series = METRICS.series(Labels.of(version, mode))

    def end(self, status: int | None, aborted: bool, broken: bool) -> None:
        """It is over.

        Args:
            status: HTTP, if anything was sent.
            aborted: the client hung up before the end.
            broken: an error was sent in the stream.
        """
        seconds = time.perf_counter() - self.begun
        outcome = _outcome(status, aborted, broken)
        series = self.series or METRICS.series(Labels.of(None, UNKNOWN))
        series.outcomes[outcome] += 1
        if outcome == "ok":
            series.duration.observe(seconds)
        first = self.first_token
        logger.info(
            "request",
            extra={
                "request_id": self.request_id,
                "model": self.model,
                "mode": series.labels.mode,
                "version": self.version,
                "outcome": outcome,
                "status": status,
                "generated": self.generated,
                "gated": self.gated,
                "first_token_seconds": None if first is None else round(first, 4),
                "seconds": round(seconds, 4),
            },
        )


def _outcome(status: int | None, aborted: bool, broken: bool) -> str:
    """One of metrics.OUTCOMES."""
    if aborted:
        return "aborted"
    if status is None or broken:
        return "error"
    if status in SHED:
        return "shed"
    if status < 400:
        return "ok"
    return "refused" if status < 500 else "error"


class Stream:
    """One sequence of the answer."""

    def __init__(self, watch: Watch, series: Series) -> None:
        self.watch, self.series = watch, series
        self._last: float | None = None

    def tokens(self, count: int, marks: Sequence[TracedToken]) -> None:
        """They go out now (see vllm_gate/token_report.py)."""
        watch, series = self.watch, self.series
        now = time.perf_counter()
        watch.generated += count
        series.generated += count
        if self._last is not None:
            series.between_tokens.observe(now - self._last)
        elif watch.first_token is None:
            watch.first_token = now - watch.begun
            series.first_token.observe(watch.first_token)
        self._last = now
        for mark in marks:
            if mark["gated"]:
                watch.gated += 1
                series.gated += 1
                if "entropy" in mark:
                    series.entropy.observe(mark["entropy"])
                    series.rank.observe(mark["rank"] or DEPTH + 1)
