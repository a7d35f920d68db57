"""The adapter at decision points of the base's rollouts, exactly as the server runs it.

A decision point is one forward pass of one token: the adapter is on, attention reads the base's
keys and values up to and including that position, nothing is written. Given those, decision points
are independent of one another, so all of a batch run together:

    rollout 1:  cache of 300 positions, read by its 9 points  \
                                                                >  one row: 18 queries, 470 keys
    rollout 2:  cache of 170 positions, read by its 9 points  /

Several rollouts share a row, so that rows are equally long and padding stays small; a mask shows
each point its own rollout's cache alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from training.base_cache import CacheStore, RolloutCache, read_only, stack_caches
from training.hf_model import decoder, head
from training.objective import token_log_probs

# Of a batch without gradients:
POINTS = 512  # its logits are [POINTS, V] float32
READS = 32768  # positions of the base's caches that lie on the device beside it
PADDING = 0.1  # the share of a batch's queries that may be padding


class Points(NamedTuple):
    """The decision points of one rollout: their tokens, positions, and the tokens that follow."""

    ids: list[int]  # [n] the tokens that stand there
    positions: list[int]  # [n] ascending, counted from the prompt's first token
    targets: list[int]  # [n] the tokens that follow

    @classmethod
    def of(cls, prompt: list[int], answer: list[int], decisions: Sequence[bool]) -> Points:
        """Those positions that predict an answer token whose decision, [T] bool, is True."""
        tokens = prompt + answer
        found = [len(prompt) - 1 + t for t, is_one in enumerate(decisions) if is_one]
        return cls([tokens[p] for p in found], found, [tokens[p + 1] for p in found])

    @property
    def reads(self) -> int:
        """How many positions of the base's cache they read."""
        return self.positions[-1] + 1


def pack(counts: Sequence[int]) -> list[list[int]]:
    """Distribute rollouts over as many rows as keep padding below `PADDING`.

    Each rollout, largest first, goes to the row that has the fewest points. More rows waste fewer
    scores between a point and other rollouts' caches; a single row has no padding at all.

    Args:
        counts: decision points of each rollout, at least one.

    Returns:
        Indices of the rollouts in each row.
    """
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    for size in range(len(counts), 1, -1):
        rows: list[list[int]] = [[] for _ in range(size)]
        filled = [0] * size
        for index in order:
            row = filled.index(min(filled))
            rows[row].append(index)
            filled[row] += counts[index]
        if sum(counts) >= (1 - PADDING) * size * max(filled):
            return rows
    return [list(range(len(counts)))]


def visible(
    points: Sequence[Sequence[Points]], window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """The additive attention mask of packed rollouts.

    Args:
        points: of each row, the points of its rollouts, in the order of their caches.
        window: positions that a sliding-window layer reads, its own included; None: all.

    Returns:
        [rows, 1, most queries, longest row of caches]: 0 where a point reads, lowest elsewhere.
    """
    queries = max(sum(len(one.ids) for one in row) for row in points)
    keys = max(sum(one.reads for one in row) for row in points)
    mask = torch.full((len(points), 1, queries, keys), torch.finfo(dtype).min, dtype=dtype)
    for number, row in enumerate(points):
        query = key = 0
        for one in row:
            at = torch.tensor(one.positions)[:, None]
            read = torch.arange(one.reads)[None]
            seen = read <= at
            if window is not None:
                seen &= read > at - window
            part = mask[number, 0, query : query + len(one.ids), key : key + one.reads]
            part.masked_fill_(seen, 0.0)
            query, key = query + len(one.ids), key + one.reads
    return mask


def layer_windows(config: Any) -> dict[str, int | None]:
    """Layer type -> the positions it reads; None: all. `config`: a transformers configuration.

    Raises:
        ValueError: a layer type that reads something else than a window or everything.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    # Qwen2's configuration names a window that is switched off.
    if not getattr(config, "use_sliding_window", True):
        window = None
    types = getattr(config, "layer_types", None)
    if not types:
        return {"sliding_attention" if window else "full_attention": window}
    known = {"full_attention": None, "sliding_attention": window}
    unknown = sorted(set(types) - known.keys())
    if unknown:
        raise ValueError(
            f"model: layers of type {unknown[0]} cannot be fitted at decision points; fit at every "
            "position with --mode always"
        )
    return {kind: known[kind] for kind in sorted(set(types))}


class Batch(NamedTuple):
    """Decision points of several rollouts, packed into rows."""

    ids: torch.Tensor  # [rows, Q]
    positions: torch.Tensor  # [rows, Q]
    places: torch.Tensor  # [N] into rows * Q, rollout by rollout: the real ones
    masks: dict[str, torch.Tensor]  # layer type -> [rows, 1, Q, K]
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # base keys, values [rows, heads, K, head size]

    @property
    def padding(self) -> float:
        """The share of queries that are padding."""
        return 1 - len(self.places) / self.ids.numel()


def make_batch(
    points: Sequence[Points], caches: Sequence[RolloutCache], windows: dict[str, int | None]
) -> Batch:
    """Pack the decision points of rollouts, each with the base's cache of its `reads` positions."""
    rows = pack([len(one.ids) for one in points])
    width = max(sum(len(points[index].ids) for index in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[torch.Tensor] = [torch.empty(0)] * len(points)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            end = start + len(points[index].ids)
            ids[number, start:end] = torch.tensor(points[index].ids)
            positions[number, start:end] = torch.tensor(points[index].positions)
            places[index] = torch.arange(number * width + start, number * width + end)
            start = end
    packed = [[points[index] for index in row] for row in rows]
    dtype = caches[0][0][0].dtype
    return Batch(
        ids,
        positions,
        torch.cat(places),
        {kind: visible(packed, window, dtype) for kind, window in windows.items()},
        stack_caches([[caches[index] for index in row] for row in rows]),
    )


def point_states(model: Any, batch: Batch) -> torch.Tensor:
    """[N, d] last hidden states at the decision points of `batch`, rollout by rollout.

    The adapter of a PeftModel is on; gradients flow through it.
    """
    device = model.device
    masks = {kind: mask.to(device) for kind, mask in batch.masks.items()}
    hidden: torch.Tensor = decoder(model)(
        input_ids=batch.ids.to(device),
        position_ids=batch.positions.to(device),
        # Models whose layers all read alike take one mask, the others one for each type.
        attention_mask=next(iter(masks.values())) if len(masks) == 1 else masks,
        past_key_values=read_only([(k.to(device), v.to(device)) for k, v in batch.layers]),
        use_cache=True,
    ).last_hidden_state
    return hidden.flatten(0, 1)[batch.places.to(device)]


@torch.no_grad()
def point_log_probs(
    model: Any, batch: Batch, targets: Sequence[int], temperatures: Sequence[float] = (1.0,)
) -> torch.Tensor:
    """log p of the token that follows each decision point.

    Args:
        targets: [N] those tokens.

    Returns:
        [len(temperatures), N] float32, on the CPU.
    """
    logits = head(model)(point_states(model, batch)).float()
    tokens = torch.tensor(targets, device=logits.device)
    return torch.stack([token_log_probs(logits, tokens, t).cpu() for t in temperatures])


def batches_of(points: Sequence[Points]) -> Iterator[list[int]]:
    """Rollouts in batches of at most POINTS decision points, and READS positions that they read.

    One rollout may have more.
    """
    batch: list[int] = []
    count = reads = 0
    for index in sorted(range(len(points)), key=lambda i: (points[i].reads, i)):
        count += len(points[index].ids)
        reads += points[index].reads
        if batch and (count > POINTS or reads > READS):
            yield batch
            batch, count, reads = [], len(points[index].ids), points[index].reads
        batch.append(index)
    if batch:
        yield batch


def log_probs(
    model: Any,
    points: Sequence[Points],
    store: CacheStore,
    windows: dict[str, int | None],
    temperatures: Sequence[float] = (1.0,),
    label: str | None = None,
) -> list[list[torch.Tensor]]:
    """log p of what follows the decision points of many rollouts, the caches of `store`.

    Args:
        label: shows a progress bar of this name.

    Returns:
        By temperature and rollout, [n] float32 on the CPU.
    """
    found = [[torch.empty(0)] * len(points) for _ in temperatures]
    total = sum(len(one.ids) for one in points)
    bar = tqdm(desc=label, unit="tok", total=total, disable=label is None)
    for batch in batches_of(points):
        these = [points[index] for index in batch]
        made = make_batch(these, store.get(batch), windows)
        targets = [token for one in these for token in one.targets]
        sizes = [len(one.ids) for one in these]
        for which, values in enumerate(point_log_probs(model, made, targets, temperatures)):
            for index, part in zip(batch, values.split(sizes), strict=True):
                found[which][index] = part
        bar.update(sum(sizes))
    bar.close()
    return found
