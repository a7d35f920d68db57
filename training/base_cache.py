"""The base's keys and values of whole rollouts: what the adapter reads at decision points.

A gated token's pass reads the base's cache up to its own position and writes nothing. So the cache
of a rollout is computed once, without the adapter and without gradients, and serves every epoch and
every checkpoint:

    store = CacheStore(model, prompts, answers, Budget.of_gib(4, 16), folder)
    caches = store.get([3, 7])      # one list of (keys, values), layer by layer, for each rollout

Rollouts of one problem share their prompt's cache, which is computed and kept once. `CacheStore`
keeps caches in memory up to a budget, then on disk, and computes the rest again whenever it is
asked for them. Caches on disk are named by their tokens; a store that is told to keep them leaves
them there, and the next fit on the same rollouts finds them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from training.hf_model import batches, decoder, pad_right

logger = logging.getLogger(__name__)

# Keys and values of each layer of one rollout, each [heads, T, head size], on the CPU.
RolloutCache = list[tuple[torch.Tensor, torch.Tensor]]
# A prompt or an answer: ("prompt", its number) or ("answer", its row).
Piece = tuple[str, int]
Pieces = dict[Piece, RolloutCache]
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


def is_readable(config: Any) -> bool:
    """Whether a model keeps keys and values alone, and no recurrent state.

    Args:
        config: a transformers configuration.
    """
    layers = DynamicCache(config=config.get_text_config()).layers
    return not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def check_readable(config: Any) -> None:
    """Raise ValueError where a model keeps other state than keys and values."""
    if not is_readable(config):
        raise ValueError(
            "model: some of its layers keep a recurrent state, which has the last position folded "
            "in already and cannot be read as it was before; fit it with --mode always"
        )


@torch.no_grad()
def compute_caches(
    model: Any, rows: Sequence[list[int]], before: Sequence[RolloutCache] | None = None
) -> list[RolloutCache]:
    """The base's keys and values of each row of token ids, on the CPU.

    Args:
        model: a causal LM, or a PeftModel of one, whose adapter is switched off meanwhile.
        before: the cache of what stands before each row; None: rows begin at position 0.

    Raises:
        ValueError: as `check_readable`.
    """
    check_readable(model.config)
    ids, mask = pad_right(list(rows))
    cache = DynamicCache()  # without the model's configuration: no layer forgets what left a window
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    past = 0
    if before is not None:
        # Padded on the left, so that a sliding window counts no padding.
        lengths = torch.tensor([one[0][0].shape[1] for one in before])[:, None]
        past = int(lengths.max())
        for layer in range(len(before[0])):
            keys, values = (
                torch.stack([_pad_left(one[layer][which], past) for one in before])
                for which in (0, 1)
            )
            cache.update(keys.to(model.device), values.to(model.device), layer)
        mask = torch.cat([(torch.arange(past) >= past - lengths).to(mask.dtype), mask], dim=1)
        positions = positions + lengths
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        decoder(model)(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            past_key_values=cache,
            use_cache=True,
        )

    def of(whole: torch.Tensor, row: int) -> torch.Tensor:
        return whole[row, :, past : past + len(rows[row])].to("cpu", copy=True)

    return [
        [(of(layer.keys, row), of(layer.values, row)) for layer in cache.layers]
        for row in range(len(rows))
    ]


def _pad_left(part: torch.Tensor, width: int) -> torch.Tensor:
    """[heads, T, head size] -> [heads, width, head size], zeros in front."""
    return torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0))


def join_caches(first: RolloutCache, second: RolloutCache) -> RolloutCache:
    """The cache of two pieces of one rollout."""
    return [
        (torch.cat([k, more_k], dim=1), torch.cat([v, more_v], dim=1))
        for (k, v), (more_k, more_v) in zip(first, second, strict=True)
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
    """The bytes that caches may still occupy; all stores that are given it share it."""

    memory: float
    disk: float
    kept: set[Path] = field(default_factory=set)  # files that stay, each counted once

    @classmethod
    def of_gib(cls, memory: float, disk: float) -> Budget:
        """A budget of so many GiB."""
        return cls(memory * GIB, disk * GIB)


class CacheStore:
    """Caches of rollouts: in memory, on disk, or computed again when needed.

    Args:
        model: computes them; a PeftModel's adapter is switched off meanwhile.
        prompts: token ids of each rollout's prompt; equal ones share a cache.
        answers: token ids of each rollout's answer.
        reads: positions of each rollout that are read, from its first on; None: all.
        folder: holds those on disk; emptied at the start and by `close`, unless `keep`.
        batch_tokens: padded size of a batch that is computed; with prompts, twice as much.
        keep: put whole rollouts on disk and leave them there for later stores, which may read
            other positions. The folder must then belong to this base and its data type.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        answers: Sequence[list[int]],
        budget: Budget,
        folder: Path,
        reads: Sequence[int] | None = None,
        batch_tokens: int = 8192,
        keep: bool = False,
    ) -> None:
        self._model, self._budget, self._folder = model, budget, folder
        self._batch_tokens, self._keeps = batch_tokens, keep
        self._reads = reads or [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        if not keep:
            ends = (n - len(p) for n, p in zip(self._reads, prompts, strict=True))
            answers = [ids[:end] for ids, end in zip(answers, ends, strict=True)]
        numbers: dict[tuple[int, ...], int] = {}
        self._prompt_of = [numbers.setdefault(tuple(one), len(numbers)) for one in prompts]
        self._tokens: dict[Piece, list[int]] = {
            **{("prompt", number): list(ids) for ids, number in numbers.items()},
            **{("answer", row): ids for row, ids in enumerate(answers)},
        }
        self._in_memory: Pieces = {}
        self._on_disk: dict[Piece, Path] = {}
        self._occupied = Budget(0, 0)  # by this store
        if not keep:
            self.close()  # what a killed run left
        for piece in self._tokens if keep else ():
            if (path := self._path(piece)).exists():
                self._on_disk[piece] = path
                self._count_kept(path, path.stat().st_size)

    def _count_kept(self, path: Path, size: int) -> None:
        """Take a file that stays from the budget, unless an earlier store has."""
        if path not in self._budget.kept:
            self._budget.kept.add(path)
            self._budget.disk -= size

    def fill(self, label: str) -> None:
        """Compute every cache once and keep what the budget admits."""
        missing = [piece for piece in self._tokens if piece not in self._on_disk]
        total = sum(len(self._tokens[piece]) for piece in missing)
        # Without room for them they would be computed for nothing.
        if self._budget.memory <= 0 and self._budget.disk <= 0:
            return
        with tqdm(desc=label, unit="tok", total=total, unit_scale=True) as bar:
            for kind in ("prompt", "answer"):  # answers need their prompts
                pieces = [piece for piece in missing if piece[0] == kind]
                pieces.sort(key=lambda piece: -len(self._tokens[piece]))
                for these in self._batches(pieces):
                    found = (
                        self._compute_prompts(these)
                        if kind == "prompt"
                        else self._compute_answers(these, self._prompts(these))
                    )
                    for piece in these:
                        self._keep(piece, found[piece])
                    bar.update(sum(len(self._tokens[piece]) for piece in these))
        logger.info(
            "base caches: %d in memory, %d on disk, %d computed when needed",
            len(self._in_memory),
            len(self._on_disk),
            len(self._tokens) - len(self._in_memory) - len(self._on_disk),
        )

    def _compute_prompts(self, pieces: Sequence[Piece]) -> Pieces:
        found: Pieces = {}
        for these in self._batches(pieces):
            made = compute_caches(self._model, [self._tokens[piece] for piece in these])
            found |= dict(zip(these, made, strict=True))
        return found

    def _compute_answers(self, pieces: Sequence[Piece], prompts: Pieces) -> Pieces:
        before = {piece: prompts[self._owner(piece)] for piece in pieces}
        # An answer whose only decision is its first token is read nowhere.
        found = {
            piece: [(k[:, :0], v[:, :0]) for k, v in before[piece]]
            for piece in pieces
            if not self._tokens[piece]
        }
        for these in self._batches([piece for piece in pieces if self._tokens[piece]]):
            made = compute_caches(
                self._model,
                [self._tokens[piece] for piece in these],
                [before[piece] for piece in these],
            )
            found |= dict(zip(these, made, strict=True))
        return found

    def _batches(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """`pieces` of one kind, in batches that one pass computes, each in the order given."""
        before = [
            len(self._tokens[self._owner(piece)]) if piece[0] == "answer" else 0 for piece in pieces
        ]
        lengths = [len(self._tokens[piece]) for piece in pieces]
        for batch in batches(lengths, self._batch_tokens, before):
            yield [pieces[place] for place in sorted(batch)]

    def _owner(self, answer: Piece) -> Piece:
        """The prompt of an answer."""
        return "prompt", self._prompt_of[answer[1]]

    def _path(self, piece: Piece) -> Path:
        """Where a piece lies on disk: named by all tokens that its keys and values depend on."""
        before = self._tokens[self._owner(piece)] if piece[0] == "answer" else []
        text = f"{before} {self._tokens[piece]}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def _keep(self, piece: Piece, cache: RolloutCache) -> None:
        size = sum(tensor.nbytes for layer in cache for tensor in layer)
        if size <= self._budget.memory and not (self._keeps and size <= self._budget.disk):
            self._budget.memory -= size
            self._occupied.memory += size
            self._in_memory[piece] = cache
        elif size <= self._budget.disk:
            path = self._path(piece)
            part = path.with_suffix(".part")
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file(
                    {
                        f"{layer}.{which}": tensor
                        for layer, both in enumerate(cache)
                        for which, tensor in enumerate(both)
                    },
                    part,
                )
                os.replace(part, path)
            except Exception as error:  # safetensors raises its own for a full disk
                part.unlink(missing_ok=True)
                logger.warning("base caches: the disk takes no more (%s)", error)
                self._budget.disk = 0
                return
            if self._keeps:
                self._count_kept(path, size)
            else:
                self._budget.disk -= size
                self._occupied.disk += size
            self._on_disk[piece] = path

    def get(self, rows: Sequence[int]) -> list[RolloutCache]:
        """The caches of `rows`, in their order, each up to the last position that is read."""
        pieces = [("answer", row) for row in rows]
        prompts = self._prompts(pieces)
        answers, missing = self._kept(pieces)
        if missing:
            answers |= self._compute_answers(missing, prompts)
        return [
            [
                (keys[:, : self._reads[row]], values[:, : self._reads[row]])
                for keys, values in join_caches(prompts[self._owner(piece)], answers[piece])
            ]
            for row, piece in zip(rows, pieces, strict=True)
        ]

    def _prompts(self, answers: Sequence[Piece]) -> Pieces:
        """The caches of the prompts of `answers`, from wherever they are."""
        found, missing = self._kept([self._owner(piece) for piece in answers])
        return found | (self._compute_prompts(missing) if missing else {})

    def _kept(self, pieces: Sequence[Piece]) -> tuple[Pieces, list[Piece]]:
        """The caches of `pieces` that lie in memory or on disk, and which do not."""
        found: Pieces = {}
        for piece in pieces:
            if piece in self._in_memory:
                found[piece] = self._in_memory[piece]
            elif piece in self._on_disk and (read := self._load(piece)) is not None:
                found[piece] = read
        return found, [piece for piece in dict.fromkeys(pieces) if piece not in found]

    def _load(self, piece: Piece) -> RolloutCache | None:
        """A piece on disk; None, and it is computed again, where the file is damaged."""
        path = self._on_disk[piece]
        try:
            tensors = load_file(path)
        except Exception as error:  # safetensors raises its own for a damaged file
            logger.warning("base caches: %s is computed again (%s)", path.name, error)
            del self._on_disk[piece]
            path.unlink(missing_ok=True)
            return None
        return [
            (tensors[f"{layer}.0"], tensors[f"{layer}.1"]) for layer in range(len(tensors) // 2)
        ]

    def close(self) -> None:
        """Forget every cache and, unless they are to be kept, remove those on disk.

        What they occupied goes back to the budget, for the stores that come after.
        """
        self._in_memory.clear()
        self._on_disk.clear()
        self._budget.memory += self._occupied.memory
        self._budget.disk += self._occupied.disk
        self._occupied = Budget(0, 0)
        if not self._keeps:
            shutil.rmtree(self._folder, ignore_errors=True)
