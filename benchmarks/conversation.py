"""A long conversation that changes adapters: what each turn computes anew, and how long that takes.

    python -m benchmarks.conversation --turns 30

Turns alternate between the base, a gated adapter and a second gated adapter. Each turn's prompt is
all that was said before and a few new tokens; a token of it that is not found in the prefix cache
has to be computed before the first token of the answer. The answers are greedy, so every run of one
conversation has the same turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from adapters.gate import calibrate
from benchmarks.engines import LONGEST, SHAPES, Shape, exactly, make_engine, make_model, prepare
from benchmarks.report import print_table, save, show, spread
from training.config import Config
from vllm_gate import GateParams, GateReport
from vllm_gate.params import NEVER

KINDS = ("base", "gated, first adapter", "gated, second adapter")


class ConversationConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.conversation"

    shape: Shape = "31m"
    turns: int = Field(30, ge=4, description="Turns of a conversation.")
    prompt: int = Field(400, ge=1, description="Tokens of the first turn's prompt.")
    said: int = Field(24, ge=1, description="Tokens that each later turn adds.")
    tokens: int = Field(48, ge=1, description="Tokens of each answer.")
    rate: float = Field(0.05, ge=0, le=1, description="Wanted share of gated tokens.")
    runs: int = Field(5, ge=1, description="Conversations, each on other prompts.")

    @model_validator(mode="after")
    def _fits_into_the_context(self) -> Self:
        total = self.prompt + self.turns * (self.said + self.tokens) - self.said
        if total > LONGEST:
            raise ValueError(
                f"--turns: the conversation has {total} tokens, {LONGEST} are possible"
            )
        return self


class Turn(NamedTuple):
    """One turn of one conversation."""

    prefill: int  # tokens of the prompt that were not in the cache
    first: float  # milliseconds to the first token
    gated: int  # tokens of the answer
    answer: list[int]
    entropies: list[float]  # of the answer's tokens, nats


def ask(engine: Any, name: str, prompt: list[int], tokens: int, lora: Any, tau: float) -> Turn:
    """One turn, alone on the engine; `lora` None: the base's."""
    gate = None if lora is None else GateParams(tau, trace=2).extra_args()
    params = exactly(tokens, extra_args=gate)
    start = time.perf_counter()
    engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=lora)
    outputs: list[Any] = []
    first = 0.0
    while engine.has_unfinished_requests():
        outputs += engine.step()
        if outputs and not first:
            first = time.perf_counter() - start
    said = outputs[-1].outputs[0]
    report = GateReport.of(outputs[-1])
    prefill = len(prompt) - outputs[-1].num_cached_tokens
    entropies = [entry["entropy"] for entry in report.trace] if report else []
    gated = report.gated_tokens if report else 0
    return Turn(prefill, 1000 * first, gated, list(said.token_ids), entropies)


def measure(config: ConversationConfig, folder: Path) -> list[list[Turn]]:
    """The turns of each run."""
    import torch
    from vllm.lora.request import LoRARequest

    base, paths, parameters = make_model(folder, config.shape, adapters=2)
    print(f"{parameters / 1e6:.1f} M parameters")
    limits = {"max_num_seqs": 8, "max_model_len": LONGEST, "enable_prefix_caching": True}
    engine = make_engine(base, gate=True, adapters=2, **limits).llm_engine
    loras = [LoRARequest(f"adapter-{n}", n, str(path)) for n, path in enumerate(paths, 1)]
    voices = [None, *loras]
    generator = torch.Generator().manual_seed(1)
    runs: list[list[Turn]] = []
    tau = NEVER
    for run in range(config.runs + 1):
        history: list[int] = []
        turns: list[Turn] = []
        for number in range(config.turns):
            count = config.said if number else config.prompt
            size = SHAPES[config.shape]["vocab_size"]
            history += torch.randint(1, size, (count,), generator=generator).tolist()
            lora = voices[number % len(voices)]
            name = f"{run}-{number}"
            turns.append(ask(engine, name, list(history), config.tokens, lora, tau))
            history += turns[-1].answer
        if not run:  # it loads the adapters, and finds the threshold
            entropies = [entropy for turn in turns for entropy in turn.entropies]
            tau = calibrate(entropies, config.rate)
        runs.append(turns)
    return runs[1:]


def main() -> None:
    """Command line."""
    config = ConversationConfig.load()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(config, Path(folder))
    later = {
        kind: [
            turn
            for turns in runs
            for number, turn in enumerate(turns)
            if number and number % len(KINDS) == which
        ]
        for which, kind in enumerate(KINDS)
    }
    print_table(
        ["turns after the first", "gate rate", "prefill, tokens a turn", "time to first token, ms"],
        [
            [
                kind,
                f"{sum(t.gated for t in turns) / sum(len(t.answer) for t in turns):.1%}",
                show([turn.prefill for turn in turns]),
                show([turn.first for turn in turns], 1),
            ]
            for kind, turns in later.items()
        ],
    )
    sums = [sum(turn.prefill for turn in turns) for turns in runs]
    waits = [sum(turn.first for turn in turns) for turns in runs]
    print(
        f"\na conversation of {config.turns} turns: {show(sums)} tokens of prefill, "
        f"{show(waits)} ms until first tokens"
    )
    by_turn = [
        {
            "kind": KINDS[number % len(KINDS)],
            "prefill": spread([turns[number].prefill for turns in runs]),
            "first_token_ms": spread([turns[number].first for turns in runs]),
        }
        for number in range(config.turns)
    ]
    save(
        "conversation",
        {
            **config.values(),
            "prefill": spread(sums),
            "first_token_ms": spread(waits),
            "gated": statistics.mean(turn.gated for turns in runs for turn in turns),
            "by_turn": by_turn,
        },
    )


if __name__ == "__main__":
    main()
