"""The base's keys and values of whole rollouts: what the adapter reads at decision points.

A gated token's pass reads the base's cache up to its own position and writes nothing. So the cache
of a rollout is computed once, without the adapter and without gradients, and serves every epoch and
every checkpoint:

    store = CacheStore(model, rows, Budget(ram_gib=4, disk_gib=16), folder)
    caches = store.get([3, 7])      # one list of (keys, values), layer by layer, for each rollout

`CacheStore` keeps caches in memory up to a budget, then on disk, and computes the rest again
whenever it is asked for them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from training.model import decoder, pad_right

logger = logging.getLogger(__name__)

# Keys and values of each layer of one rollout, each [heads, T, head size], on the CPU.
RolloutCache = list[tuple[torch.Tensor, torch.Tensor]]
GIB = 2**30


class ReadOnlyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of a cache that is read and never written."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(
        self,
        key_states: torch.Tensor,  # noqa: ARG002
        value_states: torch.Tensor,  # noqa: ARG002
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention reads: the base's keys and values, whatever the new tokens' are."""
        return self.keys, self.values


def read_only(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Cache:
    """A cache for transformers of (keys, values) by layer, each [B, heads, T, head size]."""
    return Cache(layers=[ReadOnlyLayer(keys, values) for keys, values in layers])


def check_readable(config: Any) -> None:
    """Raise ValueError where a model keeps other state than keys and values.

    Args:
        config: a transformers configuration.
    """
    layers = DynamicCache(config=config.get_text_config()).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        raise ValueError(
            "model: some of its layers keep a recurrent state, which has the last position folded "
            "in already and cannot be read as it was before; fit it with --mode always"
        )


@torch.no_grad()
def compute_caches(model: Any, rows: Sequence[list[int]]) -> list[RolloutCache]:
    """The base's keys and values of each row of token ids, on the CPU.

    Args:
        model: a causal LM, or a PeftModel of one, whose adapter is switched off meanwhile.

    Raises:
        ValueError: as `check_readable`.
    """
    check_readable(model.config)
    ids, mask = pad_right(list(rows))
    cache = DynamicCache()  # without the model's configuration: no layer forgets what left a window
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        decoder(model)(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            past_key_values=cache,
            use_cache=True,
        )

    def of(whole: torch.Tensor, row: int) -> torch.Tensor:
        return whole[row, :, : len(rows[row])].to("cpu", copy=True)

    return [
        [(of(layer.keys, row), of(layer.values, row)) for layer in cache.layers]
        for row in range(len(rows))
    ]


def stack_caches(
    rows: Sequence[Sequence[RolloutCache]],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Caches of several rollouts in each row, one behind the other, padded on the right with zeros.

    Returns:
        Keys and values of each layer, each [rows, heads, longest row, head size].
    """
    width = max(sum(cache[0][0].shape[1] for cache in row) for row in rows)
    stacked = []
    for layer in range(len(rows[0][0])):
        parts = []
        for which in (0, 1):
            like = rows[0][0][layer][which]
            whole = like.new_zeros(len(rows), like.shape[0], width, like.shape[2])
            for number, row in enumerate(rows):
                joined = torch.cat([cache[layer][which] for cache in row], dim=1)
                whole[number, :, : joined.shape[1]] = joined
            parts.append(whole)
        stacked.append((parts[0], parts[1]))
    return stacked


@dataclass
class Budget:
    """What caches may still occupy, in bytes; shared by the stores it is given to."""

    memory: float
    disk: float

    @classmethod
    def of_gib(cls, memory: float, disk: float) -> Budget:
        return cls(memory * GIB, disk * GIB)


class CacheStore:
    """Caches of rollouts: in memory, on disk, or computed again when needed.

    Args:
        model: computes them; a PeftModel's adapter is switched off meanwhile.
        rows: token ids of each rollout, up to the last position that is read.
        folder: holds those on disk; emptied at the start and by `close`.
        batch_tokens: padded size of a batch that is computed.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[list[int]],
        budget: Budget,
        folder: Path,
        batch_tokens: int = 8192,
    ) -> None:
        self._model, self._rows, self._budget, self._folder = model, rows, budget, folder
        self._batch_tokens = batch_tokens
        self._in_memory: dict[int, RolloutCache] = {}
        self._on_disk: dict[int, Path] = {}
        self.close()  # what a killed run left

    def fill(self, label: str) -> None:
        """Compute every cache once, shortest last, and keep what the budget admits."""
        order = sorted(range(len(self._rows)), key=lambda row: -len(self._rows[row]))
        total = sum(map(len, self._rows))
        with tqdm(desc=label, unit="tok", total=total, unit_scale=True) as bar:
            batch: list[int] = []
            for row in order:
                if batch and len(self._rows[batch[0]]) * (len(batch) + 1) > self._batch_tokens:
                    self._compute(batch, bar)
                    batch = []
                batch.append(row)
            self._compute(batch, bar)
        logger.info(
            "base caches: %d in memory, %d on disk, %d computed when needed",
            len(self._in_memory),
            len(self._on_disk),
            len(self._rows) - len(self._in_memory) - len(self._on_disk),
        )

    def _compute(self, batch: Sequence[int], bar: Any) -> None:
        # Without room for them they would be computed for nothing.
        if batch and (self._budget.memory > 0 or self._budget.disk > 0):
            found = compute_caches(self._model, [self._rows[row] for row in batch])
            for row, cache in zip(batch, found, strict=True):
                self._keep(row, cache)
        bar.update(sum(len(self._rows[row]) for row in batch))

    def _keep(self, row: int, cache: RolloutCache) -> None:
        size = sum(tensor.nbytes for layer in cache for tensor in layer)
        if size <= self._budget.memory:
            self._budget.memory -= size
            self._in_memory[row] = cache
        elif size <= self._budget.disk:
            path = self._folder / f"{row}.safetensors"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file(
                    {
                        f"{layer}.{which}": tensor
                        for layer, both in enumerate(cache)
                        for which, tensor in enumerate(both)
                    },
                    path,
                )
            except Exception as error:  # safetensors raises its own for a full disk
                path.unlink(missing_ok=True)
                logger.warning("base caches: the disk takes no more (%s)", error)
                self._budget.disk = 0
                return
            self._budget.disk -= size
            self._on_disk[row] = path

    def get(self, rows: Sequence[int]) -> list[RolloutCache]:
        """The caches of `rows`, in their order."""
        found = {row: self._in_memory[row] for row in rows if row in self._in_memory}
        found |= {row: self._load(self._on_disk[row]) for row in rows if row in self._on_disk}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            made = compute_caches(self._model, [self._rows[row] for row in missing])
            found |= dict(zip(missing, made, strict=True))
        return [found[row] for row in rows]

    @staticmethod
    def _load(path: Path) -> RolloutCache:
        tensors = load_file(path)
        return [
            (tensors[f"{layer}.0"], tensors[f"{layer}.1"]) for layer in range(len(tensors) // 2)
        ]

    def close(self) -> None:
        """Forget every cache and remove those on disk."""
        self._in_memory.clear()
        self._on_disk.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
