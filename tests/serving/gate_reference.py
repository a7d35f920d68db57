"""What gated decoding means, written as slowly and plainly as possible.

Hugging Face and PEFT, float32, one position at a time with a KV cache: a base pass; where its
entropy exceeds tau that position runs again with the adapter on. It attends to what the base has
cached, up to and with that position; its own keys and values are hidden from it by a mask and cut
off afterwards. There the logits are divided by the gate's temperature. A grammar masks tokens
before the test; bias and penalties change logits after it.
"""

from __future__ import annotations

import re
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
    correction_temperature: float = 1.0
    guidance_scale: float = 1.0
    guidance_prompt: tuple[int, ...] = ()


class Decoded(NamedTuple):
    """Its greedy answer, cut before the first call within TIE of a tie."""

    tokens: list[int]
    points: list[int]  # positions of the decision points
    entropies: list[float]  # of the base passes
    tops: list[dict[int, float]]  # of the base passes: tokens with their probabilities, best first
    logprobs: list[float]  # of the tokens, in the pass that gave them, before bias and penalties


class Forced(NamedTuple):
    """What the reference finds at one token of an answer that somebody else gave."""

    token: int  # the one it would have taken
    gated: bool  # whether the gate opens
    entropy: float  # of the base pass
    logprob: float  # of the answer's own token, in the pass that gives it
    base_top: dict[int, float]  # of the base pass, as Decoded.tops
    sure: bool  # neither the token nor the gate is within TIE of being another


Grammar = Callable[[list[int]], Collection[int]]  # tokens said -> tokens that may come next
Change = Callable[[torch.Tensor, list[int]], torch.Tensor]  # (logits [V], tokens said) -> logits


def sums_grammar(tokenizer: Any) -> tuple[re.Pattern[str], Grammar]:
    """Digits, a sign and an x: as a regular expression, and in the tokens of a base."""
    spelled = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    pattern, unfinished = re.compile("[1-4]{6,9}[+-]x"), re.compile("[1-4]{0,9}|[1-4]{6,9}[+-]x?")

    def grammar(said: list[int]) -> list[int]:
        begun = "".join(spelled[token] for token in said)
        if pattern.fullmatch(begun):
            return [tokenizer.eos_token_id]
        return [token for token, more in spelled.items() if unfinished.fullmatch(begun + more)]

    return pattern, grammar


def _top(p: torch.Tensor) -> dict[int, float]:
    """The TOP best tokens of a distribution [V] with their probabilities, best first."""
    top = p.topk(min(TOP, len(p)))
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


class Sequence:
    """One sequence and its KV cache."""

    def __init__(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()  # keeps every position, also outside of a sliding window

    def read(self, network: Any, ids: list[int], last: int = 1) -> torch.Tensor:
        """Logits [last, V] after the `last` of `ids`, all of which go into the cache."""
        output = network(
            input_ids=torch.tensor([ids]),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return output.logits[0].double()

    def aside(self, network: Any, ids: list[int]) -> torch.Tensor:
        """Logits [V] of `network` after `ids`, which leave the cache as it is."""
        (logits,) = self.read(network, ids)
        self.cache.crop(-len(ids))
        return logits

    def reread(self, network: Any, ids: list[int], positions: list[int]) -> torch.Tensor:
        """Logits [len(ids), V] of `network` after `ids`, which the cache has at `positions`.

        Each attends to the cache up to its own position. The cache stays as it is.
        """
        there, config = self.cache.get_seq_length(), network.config
        window = getattr(config, "sliding_window", None) or there
        chunk = getattr(config, "attention_chunk_size", None) or there

        def seen_from(firsts: list[int]) -> torch.Tensor:
            mask = torch.full((1, 1, len(ids), there + len(ids)), -torch.inf)
            for row, (first, position) in enumerate(zip(firsts, positions, strict=True)):
                mask[..., row, first : position + 1] = 0.0  # none of the adapter's own keys
            return mask

        mask: Any = {
            "full_attention": seen_from([0 for _ in positions]),
            "sliding_attention": seen_from([max(0, at + 1 - window) for at in positions]),
            "chunked_attention": seen_from([at // chunk * chunk for at in positions]),
        }
        if getattr(config, "layer_types", None) is None:
            mask = mask["sliding_attention"]
        output = network(
            input_ids=torch.tensor([ids]),
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=mask,
            position_ids=torch.tensor([positions]),
        )
        self.cache.crop(-len(ids))
        return output.logits[0].double()


class Reference:
    """Greedy decoding of one base and its adapters."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        def load() -> Any:
            # Eager: the other implementations leave soft caps on attention out.
            return AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, attn_implementation="eager"
            ).eval()

        self.base = load()
        self.adapted = {
            name: PeftModel.from_pretrained(load(), str(path)).eval()
            for name, path in adapters.items()
        }
        # The same networks, LoRA layers and all, without what PEFT does around each call.
        self._adapted = {name: model.get_base_model() for name, model in self.adapted.items()}
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

    @torch.inference_mode()
    def _decode(self, asked: Asked, grammar: Grammar | None, change: Change | None) -> Decoded:
        prompt, adapter, tau, count, temperature = asked[:5]
        adapted = self._adapted[adapter] if adapter else None
        model = self.base if adapted is None or tau is not None else adapted
        sequence = Sequence()
        said: list[int] = []

        def admissible(logits: torch.Tensor) -> torch.Tensor:
            if grammar is not None:
                forbidden = torch.ones_like(logits, dtype=torch.bool)
                forbidden[list(grammar(said))] = False
                logits = logits.masked_fill(forbidden, -torch.inf)
            return logits

        made = Decoded([], [], [], [], [])
        unmasked = sequence.read(model, prompt)[0]
        logits = admissible(unmasked)
        while len(said) < count:
            opened = False
            if tau is not None:
                p = logits.softmax(-1)
                h = float(torch.special.entr(p).sum())
                if abs(h - tau) < TIE:
                    break
                opened = h > tau
            if opened:
                last = [*prompt, *said]
                if adapted is not None:
                    (again,) = sequence.reread(adapted, last[-1:], [len(last) - 1])
                else:
                    again = unmasked
                if asked.guidance_prompt:
                    away = sequence.aside(self.base, list(asked.guidance_prompt))
                    again = away + asked.guidance_scale * (again - away)
                logits = admissible(again) / temperature
            free = logits
            if change is not None:
                logits = change(logits.clone(), said)
            best = logits.topk(2)
            if best.values[0] - best.values[1] < TIE:
                break
            if tau is not None:
                made.entropies.append(h)
                made.tops.append(_top(p))
            if opened:
                made.points.append(len(prompt) + len(said) - 1)
            token = int(best.indices[0])
            made.logprobs.append(float(free.log_softmax(-1)[token]))
            said.append(token)
            if grammar is not None and token in self.ends:
                break
            unmasked = sequence.read(model, [token])[0]
            logits = admissible(unmasked)
        made.tokens.extend(said)
        return made

    @torch.inference_mode()
    def force(self, asked: Asked, said: list[int]) -> list[Forced]:
        """What `decode` would find at each token of `said`, given those before it.

        One pass of the base and one of the adapter: on a real model a fraction of `decode`'s time.
        """
        prompt, adapter, tau, _, temperature = asked[:5]
        adapted = self._adapted[adapter] if adapter else None
        model = self.base if adapted is None or tau is not None else adapted
        sequence = Sequence()
        logits = sequence.read(model, [*prompt, *said[:-1]], len(said))  # [tokens, V]
        entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        points = [] if tau is None else (entropies > tau).nonzero()[:, 0].tolist()
        final = logits.clone()
        if points:
            positions = [len(prompt) - 1 + at for at in points]
            ids = [[*prompt, *said][position] for position in positions]
            final[points] = sequence.reread(adapted, ids, positions) / temperature
        best = final.topk(2).values
        logprobs = final.log_softmax(-1)
        return [
            Forced(
                token=int(final[at].argmax()),
                gated=at in points,
                entropy=float(entropies[at]),
                logprob=float(logprobs[at, said[at]]),
                base_top=_top(logits[at].softmax(-1)),
                sure=float(best[at, 0] - best[at, 1]) >= TIE
                and (tau is None or abs(float(entropies[at]) - tau) >= TIE),
            )
            for at in range(len(said))
        ]

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: list[int]) -> list[float]:
        """The base's, of the prompt's tokens but the first."""
        logits = Sequence().read(self.base, prompt, len(prompt))[:-1]
        logprobs = logits.log_softmax(-1)
        return logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()

    @torch.inference_mode()
    def distribution(self, asked: Asked, said: list[int]) -> torch.Tensor:
        """Probabilities [V] of the token after `said`, at temperature 1, of a gated request."""
        assert asked.adapter is not None
        assert asked.tau is not None
        sequence = Sequence()
        sequence.read(self.base, [*asked.prompt, *said][:-1])
        last = [*asked.prompt, *said][-1]
        (logits,) = sequence.read(self.base, [last])
        if float(torch.special.entr(logits.softmax(-1)).sum()) > asked.tau:
            position = len(asked.prompt) + len(said) - 1
            (logits,) = sequence.reread(self._adapted[asked.adapter], [last], [position])
            logits = logits / asked.correction_temperature
        return logits.softmax(-1)
