"""Text from transformers, in batches: where vLLM cannot run, and for the random gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from training.generation.context import context_length
from training.generation.gated_decoding import Draw, IsOpen, decode, open_above, open_at_random
from training.generation.interface import Applied, Completion, Event, SamplingOptions
from training.generation.stop_strings import StopStrings
from training.hf_model import Dtype, load_model

BATCH = 256  # answers that are sampled together


class TransformersEngine:
    """Samples with `generate` of transformers, and behind a gate with `gated_decoding.decode`.

    Args:
        model: a folder.
        dtype: of the weights.
    """

    def __init__(self, model: str, dtype: Dtype = "auto") -> None:
        self._model = load_model(model, dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._ends = end_tokens(self._model, self._tokenizer)
        self._context = context_length(self._model.config)
        _keep_within(self._model, self._context)
        pad = self._tokenizer.pad_token_id
        self._pad = self._tokenizer.eos_token_id if pad is None else pad
        # The base's own sampling defaults, a repetition penalty say, would change what is drawn.
        self._model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends) or None, pad_token_id=self._pad
        )

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None,
        seeds: Sequence[int],
    ) -> Iterator[Event]:
        """Answer `prompts`, as `SamplingEngine.stream`, but without entropies.

        One seed serves a batch: that of its first prompt.
        """
        model: Any = self._model
        if applied:
            model = PeftModel.from_pretrained(self._model, applied.adapter).eval()
            _keep_within(model, self._context)
        try:
            per_batch = max(1, BATCH // options.n)
            for start in range(0, len(prompts), per_batch):
                batch = prompts[start : start + per_batch]
                with torch.random.fork_rng(), torch.inference_mode():
                    torch.manual_seed(seeds[start])
                    answers = self._batch(model, batch, options, applied)
                for offset in range(len(batch)):
                    mine = answers[offset * options.n : (offset + 1) * options.n]
                    yield start + offset, mine
        finally:
            if applied:
                model.unload()  # takes the LoRA layers out again

    def _batch(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None,
    ) -> list[Completion]:
        """Answer B prompts together, `options.n` times each; a prompt's answers stand together."""
        width = max(map(len, prompts))
        fill = [width - len(prompt) for prompt in prompts]
        # Both [B, width], padded on the left; `real` is 1 where `ids` has a token of a prompt.
        ids = torch.tensor([[self._pad] * gap + p for gap, p in zip(fill, prompts, strict=True)])
        real = torch.tensor([[0] * gap + [1] * (width - gap) for gap in fill])
        ids, real = ids.to(model.device), real.to(model.device)
        stops = StopStrings(self._tokenizer, options.stop)
        if applied is not None and applied.guidance is not None:
            raise ValueError("engine: transformers has no guidance; use vllm")
        rooms = [self._room(prompt, options) for prompt in prompts for _ in range(options.n)]
        # Rows end together; each answer is cut at its own room.
        options = replace(options, max_tokens=max(rooms))
        # Both [B * n, T]: tokens, and where the gate was open.
        if applied is None or applied.mode == "always":
            rows = self._generate(model, ids, real, options, stops)[:, width:]
            opened = torch.zeros_like(rows, dtype=torch.bool)
        else:
            rows, opened = decode(
                model,
                ids.repeat_interleave(options.n, 0),
                real.repeat_interleave(options.n, 0),
                _gate(applied),
                drawing(options),
                self._ends,
                options.max_tokens,
                applied.temperature,
                stops.ended if options.stop else None,
            )
        return [
            self._completion(row[:room], gates, stops)
            for row, gates, room in zip(rows.tolist(), opened.tolist(), rooms, strict=True)
        ]

    def _room(self, prompt: list[int], options: SamplingOptions) -> int:
        """The most tokens of an answer to `prompt`."""
        if self._context is None:
            return options.max_tokens
        if len(prompt) >= self._context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer in a context of "
                f"{self._context}"
            )
        return min(options.max_tokens, self._context - len(prompt))

    def _generate(
        self,
        model: Any,
        ids: torch.Tensor,
        real: torch.Tensor,
        options: SamplingOptions,
        stops: StopStrings,
    ) -> torch.Tensor:
        """Prompts and answers [B * n, width + T] of the model as it is, without a gate."""
        width = ids.shape[1]
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
            if options.temperature > 0
            else {"do_sample": False}
        )
        output: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=real,
            num_return_sequences=options.n,
            max_new_tokens=options.max_tokens,
            pad_token_id=self._pad,
            top_k=0,
            stopping_criteria=StoppingCriteriaList(
                [lambda rows, _scores, **_: stops.ended(rows[:, width:])] if options.stop else []
            ),
            **sampling,
        )
        return output

    def _completion(self, row: list[int], opened: list[bool], stops: StopStrings) -> Completion:
        """The answer in `row`, [T] tokens, up to its end; `opened`: where the gate was open."""
        end = next((i for i, token in enumerate(row) if token in self._ends), None)
        token_ids = row if end is None else row[: end + 1]
        if stopped := stops.cut(token_ids):
            gated = sum(opened[: len(stopped.token_ids)])
            return Completion(stopped.token_ids, stopped.text, "stop", gated)
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        reason = "length" if end is None else "stop"
        return Completion(token_ids, text, reason, sum(opened[: len(token_ids)]))

    def close(self) -> None:
        """Forget the model, so that its memory can be freed."""
        del self._model


def _keep_within(model: Any, context: int | None) -> None:
    """Give what stands behind the context the last position in it.

    In a batch, answers to the shorter prompts may go on when those to the longer ones are at their
    end. What is drawn for these then is cut off, but a table of positions must have a row for it.
    """

    if context is None:
        return
    last = context - 1

    def clamp(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = kwargs.get("position_ids")
        if positions is not None:
            kwargs = kwargs | {"position_ids": positions.clamp(max=last)}
        return args, kwargs

    model.register_forward_pre_hook(clamp, with_kwargs=True)


def end_tokens(model: Any, tokenizer: Any = None) -> set[int]:
    """Ids of the tokens that end an answer of `model`: as in vLLM, the tokenizer's own too."""
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    own = getattr(tokenizer, "eos_token_id", None)
    return {one for one in (*ends, own) if one is not None}


def _gate(applied: Applied) -> IsOpen:
    """The test that decides where `applied` runs."""
    if applied.tau is not None:
        return open_above(applied.tau)
    return open_at_random(applied.random_rate or 0.0)


def drawing(options: SamplingOptions) -> Draw:
    """Logits [B, V] -> tokens [B], as `generate` draws them."""
    warpers = LogitsProcessorList()
    if options.temperature > 0:
        warpers.append(TemperatureLogitsWarper(options.temperature))
        if options.top_p < 1:
            warpers.append(TopPLogitsWarper(options.top_p))

    def draw(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if options.temperature == 0:
            return logits.argmax(-1)
        return warpers(ids, logits.float()).softmax(-1).multinomial(1).squeeze(-1)

    return draw
