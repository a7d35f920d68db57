"""What gated decoding means, written as slowly and plainly as possible.

Hugging Face and PEFT, float32, one position at a time with a KV cache: a base pass; where its
entropy exceeds tau the cache is cut back by one and that position runs again with the adapter on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

TIE = 1e-3  # nats, and logits: closer calls are nobody's fault


class Asked(NamedTuple):
    """A request."""

    prompt: list[int]
    adapter: str | None = None  # None: the base
    tau: float | None = None  # None: the adapter at every step
    tokens: int = 40


class Decoded(NamedTuple):
    """Its greedy answer, cut before the first call within TIE of a tie."""

    tokens: list[int]
    points: list[int]  # positions of the decision points
    entropies: list[float]  # of the base passes


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
        self._known: dict[Any, Decoded] = {}

    def decode(self, asked: Asked) -> Decoded:
        """The answer to one request."""
        key = (tuple(asked.prompt), *asked[1:])
        if key not in self._known:
            self._known[key] = self._decode(asked)
        return self._known[key]

    @torch.no_grad()
    def _decode(self, asked: Asked) -> Decoded:
        from transformers import DynamicCache

        prompt, adapter, tau, count = asked
        adapted = self.adapted[adapter] if adapter else None
        model = self.base if adapted is None or tau is not None else adapted
        cache = DynamicCache()

        def run(network: Any, ids: list[int]) -> torch.Tensor:
            output = network(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            return output.logits[0, -1].double()

        ids, points, entropies = list(prompt), [], []
        logits = run(model, ids)
        while len(ids) < len(prompt) + count:
            if tau is not None:
                log_p = logits.log_softmax(-1)
                h = -float((log_p.exp() * log_p).sum())
                if abs(h - tau) < TIE:
                    break
                entropies.append(h)
                if h > tau:
                    points.append(len(ids) - 1)
                    cache.crop(-1)
                    logits = run(adapted, ids[-1:])
            best = logits.topk(2)
            if best.values[0] - best.values[1] < TIE:
                break
            ids.append(int(best.indices[0]))
            logits = run(model, ids[-1:])
        made = len(ids) - len(prompt)
        return Decoded(
            ids[len(prompt) :], [p for p in points if p < len(ids) - 1], entropies[:made]
        )

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
        return logits.softmax(-1)
