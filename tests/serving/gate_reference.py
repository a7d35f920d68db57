"""What gated decoding means, written as slowly and plainly as possible.

Hugging Face and PEFT, float32, one position at a time with a KV cache: a base pass; where its
entropy exceeds tau the cache is cut back by one and that position runs again with the adapter on.
There the logits are divided by the gate's temperature. A grammar masks tokens before the test; bias
and penalties change logits after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

TIE = 1e-3  # nats, and logits: closer calls are nobody's fault
TOP = 20  # more than a trace shows: its last may be within a hair of others


class Asked(NamedTuple):
    """A request."""

    prompt: list[int]
    adapter: str | None = None  # None: the base
    tau: float | None = None  # None: the adapter at every step
    tokens: int = 40
    gate_temperature: float = 1.0


class Decoded(NamedTuple):
    """Its greedy answer, cut before the first call within TIE of a tie."""

    tokens: list[int]
    points: list[int]  # positions of the decision points
    entropies: list[float]  # of the base passes
    tops: list[dict[int, float]]  # of the base passes: tokens with their probabilities, best first
    logprobs: list[float]  # of the tokens, in the pass that gave them, before bias and penalties


Grammar = Callable[[list[int]], Collection[int]]  # tokens said -> tokens that may come next
Change = Callable[[torch.Tensor, list[int]], torch.Tensor]  # (logits [V], tokens said) -> logits


class Reference:
    """Greedy decoding of one base and its adapters."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

        self.base = load()
        self.adapted = {
            name: PeftModel.from_pretrained(load(), str(path)).eval()
            for name, path in adapters.items()
        }
        ends = self.base.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends)
        self._known: dict[Any, Decoded] = {}

    def decode(
        self, asked: Asked, grammar: Grammar | None = None, change: Change | None = None
    ) -> Decoded:
        """The answer to one request."""
        key = (tuple(asked.prompt), *asked[1:], grammar, change)
        if key not in self._known:
            self._known[key] = self._decode(asked, grammar, change)
        return self._known[key]

    @torch.no_grad()
    def _decode(self, asked: Asked, grammar: Grammar | None, change: Change | None) -> Decoded:
        from transformers import DynamicCache

        prompt, adapter, tau, count, temperature = asked
        adapted = self.adapted[adapter] if adapter else None
        model = self.base if adapted is None or tau is not None else adapted
        cache = DynamicCache()
        said: list[int] = []

        def run(network: Any, ids: list[int]) -> torch.Tensor:
            output = network(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            logits = output.logits[0, -1].double()
            if grammar is not None:
                forbidden = torch.ones_like(logits, dtype=torch.bool)
                forbidden[list(grammar(said))] = False
                logits = logits.masked_fill(forbidden, -torch.inf)
            return logits

        made = Decoded([], [], [], [], [])
        logits = run(model, prompt)
        while len(said) < count:
            opened = False
            if tau is not None:
                p = logits.softmax(-1)
                h = float(torch.special.entr(p).sum())
                top = p.topk(min(TOP, len(p)))
                if abs(h - tau) < TIE:
                    break
                opened = h > tau
            if opened:
                cache.crop(-1)
                logits = run(adapted, [*prompt, *said][-1:]) / temperature
            free = logits
            if change is not None:
                logits = change(logits.clone(), said)
            best = logits.topk(2)
            if best.values[0] - best.values[1] < TIE:
                break
            if tau is not None:
                made.entropies.append(h)
                made.tops.append(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
            if opened:
                made.points.append(len(prompt) + len(said) - 1)
            token = int(best.indices[0])
            made.logprobs.append(float(free.log_softmax(-1)[token]))
            said.append(token)
            if grammar is not None and token in self.ends:
                break
            logits = run(model, [token])
        made.tokens.extend(said)
        return made

    @torch.no_grad()
    def distribution(self, asked: Asked, said: list[int]) -> torch.Tensor:
        """Probabilities [V] of the token after `said`, at temperature 1, of a gated request."""
        from transformers import DynamicCache

        assert asked.adapter is not None
        assert asked.tau is not None
        cache = DynamicCache()
        logits = torch.empty(0)
        for ids in [asked.prompt, *([token] for token in said)]:
            for network, tokens in ((self.base, ids), (self.adapted[asked.adapter], ids[-1:])):
                if network is not self.base:
                    log_p = logits.log_softmax(-1)
                    if -float((log_p.exp() * log_p).sum()) <= asked.tau:
                        break
                    cache.crop(-1)
                output = network(
                    input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True
                )
                logits = output.logits[0, -1].double()
                if network is not self.base:
                    logits /= asked.gate_temperature
        return logits.softmax(-1)
