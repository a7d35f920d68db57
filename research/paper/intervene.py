r"""Decode with the base, take the tuned model's token at some positions: interventions (claim 3).

    python -m research.paper.intervene --model models/tiny-qwen2 --tuned tiny-math \
        --problems asked.jsonl
    python -m research.paper.intervene --model models/tiny-qwen2 --tuned runs/grpo/model \
        --problems asked.jsonl --output runs/intervene

Both models read what has been written; the base writes it but for the tuned model's tokens

    oracle    where the two models' first choices differ
    random    at as many positions, drawn at random
    entropy   where the base's entropy exceeds tau

beside the base and the tuned model alone. `--tau` is the adapter's own, else calibrated to the
family's gate rate on the base's answers here. For an adapter the engine's replay stands beside
them: there the adapter runs at decision points only and never sees keys and values of its own
between them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from transformers import AutoTokenizer, DynamicCache

from adapters.adapter import AdapterVersion
from adapters.files import write_json
from adapters.gate import calibrate, entropy
from adapters.manifest import Mode
from research.paper.base_and_tuned import Asked, Pair, PairConfig
from training.evaluation import (
    Evaluation,
    Recorder,
    Reply,
    Result,
    compare,
    evaluate_generator,
    table,
)
from training.evaluation.statistics import Estimate, ratio, without_nan
from training.generation import Applied, derive_seed
from training.generation.gated_decoding import Draw
from training.generation.stop_strings import StopStrings
from training.generation.transformers_engine import drawing, end_tokens
from training.grading import Verifier
from training.stages.score import sequence_entropies

logger = logging.getLogger("research.paper.intervene")

Policy = Literal["base", "tuned", "oracle", "random", "entropy"]
# Base and tuned logits, two [B, V] -> where the tuned model's token is taken, [B] bool; True or
# False: everywhere or nowhere, and the other model reads nothing.
Takes = Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | bool
BATCH = 256  # sequences decoded together


class InterveneConfig(PairConfig):
    """Settings of the interventions."""

    program: ClassVar[str] = "python -m research.paper.intervene"

    tau: float | None = Field(None, ge=0, description="Threshold of the entropy gate, in nats.")


class Decoded(NamedTuple):
    """What a batch wrote."""

    tokens: torch.Tensor  # [B, T]
    taken: torch.Tensor  # [B, T] bool: the tuned model's


def takes(policy: Policy, tau: float, rate: float) -> Takes:
    """The rule of `policy`; `tau` (nats) is the gate's, `rate` the share drawn at random."""
    rules: dict[Policy, Takes] = {
        "base": False,
        "tuned": True,
        "oracle": lambda base, tuned: base.argmax(-1) != tuned.argmax(-1),
        "random": lambda base, _: torch.rand(len(base), device=base.device) < rate,
        "entropy": lambda base, _: entropy(base) > tau,
    }
    return rules[policy]


class Reader:
    """One of the two models as it reads along, with keys and values of its own."""

    def __init__(self, model: Callable[[], AbstractContextManager[Any]]) -> None:
        self._model, self._cache = model, DynamicCache()

    def __call__(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits [B, V] behind the last of `tokens` [B, S]; mask [B, all], positions [B, S]."""
        with self._model() as model:
            logits: torch.Tensor = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch alone, [kept] indices."""
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(rows)


@torch.inference_mode()
def decode(
    pair: Pair,
    ids: torch.Tensor,
    mask: torch.Tensor,
    rule: Takes,
    draw: Draw,
    ends: set[int],
    max_tokens: int,
) -> Decoded:
    """Answer a batch of prompts, taking the tuned model's token where `rule` says so.

    Args:
        ids, mask: [B, S] prompts, padded on the left; ones where real.
        draw: ids and logits [B, V] -> tokens [B].
        ends: tokens after which a row is done; what follows in its row means nothing.
    """
    base, tuned = Reader(pair.base), Reader(pair.tuned)
    stop = torch.tensor(sorted(ends), device=ids.device)
    tokens = ids.new_zeros(len(ids), max_tokens)
    taken = torch.zeros_like(tokens, dtype=torch.bool)
    rows = torch.arange(len(ids), device=ids.device)  # those that are still decoded
    done = torch.zeros_like(rows, dtype=torch.bool)
    new, positions = ids, (mask.cumsum(-1) - 1).clamp_min(0)
    step = 0
    for step in range(max_tokens):
        if isinstance(rule, bool):
            logits = (tuned if rule else base)(new, mask, positions)
            here = torch.full_like(done, rule)
        else:
            by_base, by_tuned = (reader(new, mask, positions) for reader in (base, tuned))
            here = rule(by_base, by_tuned)
            logits = torch.where(here[:, None], by_tuned, by_base)
        token = draw(ids, logits)
        tokens[rows, step], taken[rows, step] = token, here & ~done
        done |= torch.isin(token, stop)
        if done.all():
            break
        ids, new = torch.cat([ids, token[:, None]], 1), token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
        if 2 * done.sum() >= len(done):  # a few long answers would drag the others along
            kept = (~done).nonzero()[:, 0]
            for reader in (base, tuned):
                reader.keep(kept)
            ids, new, mask, positions = (each[kept] for each in (ids, new, mask, positions))
            rows, done = rows[kept], done[kept]
    return Decoded(tokens[:, : step + 1], taken[:, : step + 1])


class Interventions:
    """Asks all problems, policy by policy."""

    def __init__(self, pair: Pair, asked: Asked, verifier: Verifier) -> None:
        self._pair, self._prompts, self._problems = pair, asked.prompts, asked.problems
        self._options, self._verifier = asked.options, verifier
        self._tokenizer = AutoTokenizer.from_pretrained(asked.base.folder)
        self._stops = StopStrings(self._tokenizer, self._options.stop)
        with pair.base() as model:
            self._ends = end_tokens(model, self._tokenizer)

    def ask(self, policy: Policy, rule: Takes) -> tuple[Result, list[list[int]]]:
        """The graded answers, `gated` of them being the tuned model's tokens; and their ids."""
        options = self._options
        rows: list[list[int]] = []
        with Recorder(self._problems, options.n, self._verifier, label=policy) as recorder:
            for first, tokens, taken in self._batches(rule):
                replies = [
                    self._reply(row, marks, rows)
                    for row, marks in zip(tokens.tolist(), taken.tolist(), strict=True)
                ]
                for place in range(len(replies) // options.n):
                    mine = replies[place * options.n : (place + 1) * options.n]
                    recorder.add(first + place, mine)
            mode: Mode = "base" if policy == "base" else "always" if policy == "tuned" else "gated"
            return recorder.result(policy, mode, "problems", options.temperature), rows

    def _batches(self, rule: Takes) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(first problem, tokens [B, T], taken [B, T]), `n` rows a problem."""
        options, per_batch = self._options, max(1, BATCH // self._options.n)
        for first in range(0, len(self._prompts), per_batch):
            batch = self._prompts[first : first + per_batch]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            ids, mask = (
                rows.repeat_interleave(options.n, 0).to(self._pair.device) for rows in (ids, mask)
            )
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(options.seed, self._problems[first].id))
                yield (
                    first,
                    *decode(
                        self._pair, ids, mask, rule, drawing(options), self._ends,
                        options.max_tokens,
                    ),
                )  # fmt: skip

    def _reply(self, row: list[int], taken: list[bool], rows: list[list[int]]) -> Reply:
        end = next((place for place, token in enumerate(row) if token in self._ends), None)
        kept = row if end is None else row[: end + 1]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        stopped = self._stops.cut(kept)
        kept, text = stopped or (kept, text)
        rows.append(kept)
        reason = "length" if end is None and stopped is None else "stop"
        return Reply(text, len(kept), reason, sum(taken[: len(kept)]))


def taken_rate(result: Result) -> Estimate:
    """Tokens of the tuned model / all."""
    return ratio(result.gated.sum(-1), result.tokens.sum(-1))


def run(config: InterveneConfig) -> tuple[list[Result], dict[str, Any]]:
    """All policies; the results, the base's first, and what report.json holds."""
    asked = Asked.of(config)
    pair = Pair(asked.base, asked.tuned)
    with Verifier() as verifier:
        ask = Interventions(pair, asked, verifier).ask
        alone, rows = ask("base", takes("base", 0, 0))
        tau = config.tau if config.tau is not None else _tau(asked, pair, rows)
        results = [alone, *(ask(p, takes(p, tau, 0))[0] for p in ("tuned", "oracle"))]
        rate = taken_rate(results[-1]).value
        results.append(ask("random", takes("random", tau, rate))[0])
        results.append(ask("entropy", takes("entropy", tau, rate))[0])
        if asked.tuned.adapter is not None:
            results.append(_replay(asked, asked.tuned.adapter, tau, verifier))
    report = {
        "base": asked.base.name,
        "tuned": asked.tuned.name,
        "tau": tau,
        "results": {
            one.label: one.report()
            | {"taken_rate": taken_rate(one).value, "scores": without_nan(one.scores.tolist())}
            for one in results
        },
        "differences": compare(results),
    }
    return results, report


def _tau(asked: Asked, pair: Pair, rows: Sequence[list[int]]) -> float:
    """The adapter's, or the family's gate rate on the base's answers, `rows`."""
    adapter = asked.tuned.adapter
    if adapter is not None and adapter.gate is not None:
        return adapter.gate.tau
    given = [prompt for prompt in asked.prompts for _ in range(asked.options.n)]
    found = []
    with pair.base() as model:
        for start in range(0, len(rows), 64):
            part = slice(start, start + 64)
            found += sequence_entropies(model, given[part], rows[part])
    return calibrate(np.concatenate(found), asked.recipe.gate.rate)


def _replay(asked: Asked, adapter: AdapterVersion, tau: float, verifier: Verifier) -> Result:
    """What the engine does: the adapter at decision points alone, at its gate's temperature."""
    evaluation = Evaluation(asked.problems, asked.renderer, asked.options, verifier)
    applied = Applied.behind(adapter.path, adapter.gate, tau)
    with asked.generator(gated=True) as generator:
        return evaluate_generator(generator, evaluation, applied, "replay")


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = InterveneConfig.begin(argv)
    with config.usage_errors():
        results, report = run(config)
    print(table(results))
    if config.output:
        config.save(config.output / "intervene.yaml")
        write_json(config.output / "report.json", report)


if __name__ == "__main__":
    main()
