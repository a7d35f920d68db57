"""The gate's mathematics: entropy, the test H > tau, and the calibration of tau.

One definition for scoring, training, calibration and the engine. Entropies are in nats, at
temperature 1, over the whole vocabulary (paper, section on decision points).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

# Gate rates for which every calibration keeps a threshold, so that a request can ask by rate.
RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
# A gated token reads the base's keys and values; an adapter's own go nowhere.
INERT = ("k_proj", "v_proj")
# What helps a request for an adapter whose gate was never calibrated.
WAYS_OUT = (
    "send gate_tau, in nats, or measure a table of gate rates with `reasonmaxxer store calibrate "
    "NAME`; a server with --default-gate-rate RATE measures one itself"
)
LN2 = math.log(2)
# Logits of one pass. On a CPU 256 KiB in float32, a fraction of a core's L2; elsewhere 128 MiB, so
# that what many rows need on the way is bounded.
CACHED, BOUNDED = 2**16, 2**25


def acting(modules: Iterable[str]) -> list[str]:
    """Of the LoRA's `modules` (names or paths), those that have an effect behind the gate."""
    return [name for name in modules if name.rpartition(".")[2] not in INERT]


def entropy(logits: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Shannon entropy of softmax(logits), in nats. Not differentiable.

    Args:
        logits: [..., V], any float type; entries of -inf are tokens that cannot be taken.
        rows: of logits [R, V], the ones that are wanted, in any order; None: all.

    Returns:
        [...] float32, or one for each of `rows`, each between 0 and log V.
    """
    import torch

    every = logits.reshape(-1, logits.shape[-1])
    vocab = every.shape[-1]
    # A few rows at a time, so that what is computed on the way stays in the cache.
    cpu = logits.device.type == "cpu"
    size = _rows_at_a_time(vocab, torch.get_num_threads()) if cpu else max(1, BOUNDED // vocab)
    if rows is None or list(rows) == list(range(len(every))):
        pieces = every.split(size)
    else:
        pieces = tuple(every[rows[at : at + size]] for at in range(0, max(len(rows), 1), size))
    total, product = (torch.cat(sums) for sums in zip(*map(_sums, pieces), strict=True))
    found = total.log() - product / total
    return found if rows is not None else found.view(logits.shape[:-1])


def _rows_at_a_time(vocab: int, threads: int) -> int:
    """Rows of one pass on a CPU: what fits a core's cache, for each thread, and at least one row.

    torch splits a pass among its threads. With a row for each, none waits for half of another's.
    """
    return threads * max(1, CACHED // vocab)


def _sums(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum e^z and sum z e^z, whose H is log sum e^z - sum z e^z / sum e^z, for z that peak at 0.

    Powers of 2, because torch's CPU build takes a third of the time for them (torch 2.13, MKL's
    exp on an AMD EPYC: 125 and 44 microseconds for 152k logits).
    """
    z = logits.float()
    # A masked token has weight 0 and z = -inf; the limit of their product is 0, not nan.
    z = (z - z.amax(-1, keepdim=True)).mul_(1 / LN2).clamp_min_(-1e4)  # bits
    weight = z.exp2()
    return weight.sum(-1), weight.mul_(z).sum(-1).mul_(LN2)


@overload
def opens(entropies: torch.Tensor, tau: torch.Tensor | float) -> torch.Tensor: ...
@overload
def opens(entropies: npt.NDArray[Any], tau: npt.NDArray[Any] | float) -> npt.NDArray[Any]: ...
def opens(entropies: Any, tau: Any) -> Any:
    """The gate: True where the base is uncertain, H > tau (strictly). Shapes broadcast."""
    return entropies > tau


def calibrate(entropies: npt.ArrayLike, rate: float) -> float:
    """The smallest tau (nats) whose gate rate on `entropies` is at most `rate`.

    Args:
        entropies: base entropies of generated positions, any shape, nats.
        rate: wanted share of gated tokens, 0 <= rate <= 1.

    Raises:
        ValueError: no entropies, one that is not finite, or a rate outside [0, 1].
    """
    h = np.sort(np.asarray(entropies, dtype=np.float64).ravel())[::-1]
    if h.size == 0 or not np.isfinite(h).all():
        raise ValueError("entropies: at least one is needed and all must be finite")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate: {rate} is not between 0 and 1")
    wanted = int(np.floor(rate * h.size + 1e-9))
    # With tau at the (wanted+1)-th largest value, at most `wanted` values exceed it strictly.
    return float(max(h[wanted], 0.0)) if wanted < h.size else 0.0


def calibration_table(
    entropies: npt.ArrayLike, rates: Sequence[float] = RATES
) -> list[tuple[float, float]]:
    """(rate, tau) for each of `rates`: what a manifest keeps."""
    return [(rate, calibrate(entropies, rate)) for rate in rates]


def threshold_for(table: Sequence[tuple[float, float]], rate: float) -> float:
    """The tau (nats) for a gate rate, interpolated in a calibration table.

    Args:
        table: (rate, tau), rates ascending; beyond its last rate the line runs on to (1, 0).
        rate: wanted share of gated tokens, 0 < rate <= 1.

    Raises:
        ValueError: an empty table, or a rate it does not reach.
    """
    if not table:
        raise ValueError(f"gate_rate: this adapter has no table of gate rates; {WAYS_OUT}")
    if not table[0][0] <= rate <= 1:
        raise ValueError(f"gate_rate: {rate} is not between {table[0][0]} and 1")
    rates, taus = zip(*table, strict=True)
    return float(np.interp(rate, (*rates, 1.0), (*taus, 0.0)))
