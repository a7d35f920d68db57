"""Thresholds for adapters that bring none: --default-gate-rate.

    reasonmaxxer serve --default-gate-rate 0.05     # NAME:gated works for every adapter

The server looks at the base's entropy while it answers: at one in eight requests to the base and to
gated names. At every token these run the base first, at the position that the gate would test. tau
is the threshold that the wanted share of those entropies exceeds, so the gate rate holds for the
server's own traffic. A fixed number of entropies is kept, a uniform sample of all that were seen.

tau must not move under every request: it is taken first after `needed` tokens, and again each time
that twice as many have been seen. So it moves ever more rarely, a dozen times in a server's life.

The first request that needs the threshold before enough was seen has the base answer the shipped
prompts (adapters/calibration_prompts.py). Their tokens count as traffic does, and the request waits
until `needed` tokens were seen.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from adapters.gate import calibrate, calibration_table
from adapters.manifest import Gate
from vllm_gate.params import TAU

logger = logging.getLogger(__name__)

KEPT = 2**16  # entropies; the standard error of a gate rate of 5 % is then 0.1 %
OPENED = 100  # tokens above tau that a first threshold must rest on
FEWEST = 1000  # tokens that it must rest on at any rate
SHARE = 8  # one request in so many is looked at
ROUNDS = 8  # times that the shipped prompts are asked at most

Source = Literal["manifest", "admin", "default_gate_rate"]


class Threshold(NamedTuple):
    """What NAME:gated opens at where a request does not say."""

    gate: Gate | None  # the calibration: the adapter's own, else the server's
    tau: float | None  # nats; None: a request must name it
    source: Source | None  # where tau comes from

    def facts(self) -> dict[str, Any]:
        """As the model's card has it."""
        gate = None if self.source == "admin" else self.gate  # a tau by hand was not calibrated
        return {
            "tau": self.tau,
            "source": self.source,
            "rate": gate.rate if gate else None,
            "tokens": gate.tokens if gate else None,
        }


def threshold(own: Gate | None, by_hand: float | None, default: DefaultGate | None) -> Threshold:
    """The threshold in force: set by hand, else the adapter's own, else the default.

    Args:
        own: the adapter's calibration.
        by_hand: set by the admin API, nats.
    """
    fallback = default.gate if default is not None else None
    gate = own or fallback
    if by_hand is not None:
        return Threshold(gate, by_hand, "admin")
    if own is not None:
        return Threshold(own, own.tau, "manifest")
    if default is not None:
        return Threshold(gate, gate.tau if gate else None, "default_gate_rate")
    return Threshold(None, None, None)


class EntropySample:
    """A uniform sample of all entropies seen, in bounded memory (Vitter's algorithm R)."""

    def __init__(self, size: int = KEPT, seed: int = 0) -> None:
        self.seen = 0
        self._values = np.empty(size, np.float32)  # nats
        self._random = random.Random(seed)

    def add(self, entropy: float) -> None:
        """One more; every one seen so far is kept with the same probability."""
        size = len(self._values)
        place = self.seen if self.seen < size else self._random.randrange(self.seen + 1)
        if place < size:
            self._values[place] = entropy
        self.seen += 1

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The entropies kept, nats."""
        return self._values[: min(self.seen, len(self._values))]


class DefaultGate:
    """The gate of all adapters that bring none.

    Args:
        rate: wanted gate rate.
        ask: has the base answer the shipped prompts, looked at; called with the round's number.
    """

    def __init__(
        self, rate: float, ask: Callable[[int], Awaitable[None]], size: int = KEPT
    ) -> None:
        self.rate = rate
        self.needed = max(FEWEST, math.ceil(OPENED / rate))
        self.gate: Gate | None = None  # None: not enough was seen yet
        self.sample = EntropySample(size)
        self._ask = ask
        self._next = self.needed  # tokens seen at which tau is taken again
        self._random = random.Random(0)
        self._asking: asyncio.Task[None] | None = None
        self._measured = asyncio.Event()

    def looks(self) -> bool:
        """Whether to look at the request that has just come."""
        return self._random.randrange(SHARE) == 0

    def observe(self, entropy: float) -> None:
        """The base's entropy at a token that went out, nats."""
        self.sample.add(entropy)
        if self.sample.seen >= self._next:
            self._next = 2 * self.sample.seen
            self._measure()

    def _measure(self) -> None:
        h = self.sample.values
        tau = calibrate(h, self.rate)
        before = self.gate
        self.gate = Gate(
            tau=tau, rate=float((h > tau).mean()), tokens=len(h), table=calibration_table(h)
        )
        logger.info(
            "default gate: tau %.4f nats for a gate rate of %g, by %d tokens%s",
            *(tau, self.rate, self.sample.seen),
            f" (before: {before.tau:.4f})" if before else "",
        )
        self._measured.set()

    async def ready(self) -> Gate:
        """The gate; where traffic has not measured it yet, the shipped prompts do.

        Raises:
            ValueError: they could not; the message names the way out.
        """
        if self.gate is None:
            if self._asking is None or self._asking.done():
                # In a context of its own: the tokens are not those of the request that waits.
                self._asking = asyncio.get_running_loop().create_task(
                    self._ask_until_measured(), context=contextvars.Context()
                )
            measured = asyncio.ensure_future(self._measured.wait())
            try:
                await asyncio.wait({self._asking, measured}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                measured.cancel()
        if self.gate is None:
            raise ValueError(
                f"{TAU}: no threshold could be measured: a gate rate of {self.rate:g} needs "
                f"{self.needed} tokens of the base, and {self.sample.seen} were seen; send {TAU}"
            )
        return self.gate

    async def _ask_until_measured(self) -> None:
        logger.info(
            "default gate: the base answers the shipped prompts, %d tokens are needed", self.needed
        )
        try:
            for number in range(ROUNDS):
                await self._ask(number)
                if self.gate is not None:
                    return
        except Exception as error:  # the engine's own, whatever its type; it logs the traceback
            logger.error(
                "default gate: the shipped prompts could not be answered (%s: %s)",
                *(type(error).__name__, error),
            )
