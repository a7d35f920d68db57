"""Answers of the base to the shipped prompts, from which the server measures its default gate."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable

from vllm import SamplingParams
from vllm.engine.protocol import EngineClient

from adapters.calibration_prompts import PROMPTS
from adapters.prompt import PromptRenderer
from serving import vllm_versions
from serving.default_gate import DefaultGate
from serving.prompts import ServedPrompt
from vllm_gate.params import NEVER, GateParams

LONGEST = 256  # tokens of an answer


def shipped_prompts(
    engine: EngineClient, template: str, stop: tuple[str, ...], temperature: float
) -> Callable[[int], Awaitable[None]]:
    """What has the base answer the shipped prompts, looked at.

    Args:
        template: chat template, Jinja.
        stop: strings that end an answer.
        temperature: of the answers; entropies are at temperature 1 whatever it is.
    """

    def render() -> list[list[int]]:
        renderer = PromptRenderer(engine.renderer.get_tokenizer(), template)
        return [renderer.token_ids(prompt) for prompt in PROMPTS]

    async def answer(number: int, place: int, ids: list[int]) -> None:
        room = engine.model_config.max_model_len - len(ids)
        if room < 1:
            return
        params = SamplingParams(
            temperature=temperature,
            max_tokens=min(LONGEST, room),
            seed=number * len(PROMPTS) + place,
            stop=list(stop),
            extra_args=GateParams(NEVER, watched=True).extra_args(),
        )
        request = f"default-gate-{number}-{place}"
        async for _ in engine.generate({"prompt_token_ids": ids}, params, request):
            pass

    async def ask(number: int) -> None:
        prompts = await asyncio.to_thread(render)
        await asyncio.gather(*(answer(number, place, ids) for place, ids in enumerate(prompts)))

    return ask


def make_default_gate(engine: EngineClient, args: Namespace) -> DefaultGate | None:
    """The default gate that the launcher's arguments ask for; None where they ask for none."""
    if args.default_gate_rate is None:
        return None
    prompt: ServedPrompt | None = args.prompt
    if prompt is not None:
        template, stop = prompt.format.template, prompt.format.stop
    else:  # the user's own: a file, one of vLLM's, or the template itself
        load = vllm_versions.find("load_chat_template", vllm_versions.CHAT_UTILS)
        template, stop = load(args.chat_template), ()
    ask = shipped_prompts(engine, template, stop, args.sampling_temperature)
    return DefaultGate(args.default_gate_rate, ask)
