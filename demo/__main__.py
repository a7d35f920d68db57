"""The main job, end to end: fit an adapter, serve it beside its base, and measure both over HTTP.

    python -m demo        (or: make demo)

Problems come from the miniature world, the base is the shipped `models/tiny-qwen2`. The adapter is
fitted by `python -m training.fit`, served by `python -m serving`, and asked by the `openai` client;
the table and `runs/demo/report.json` say what came of it. A second call finds the adapter fitted.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from adapters.base import BaseModel
from adapters.files import sha256_file, write_json
from adapters.version import WEIGHTS
from demo.server import end_as_asked, running_server
from training.ask import Endpoint
from training.config import Config
from training.evaluate import evaluate_url
from training.generate import SamplingOptions
from training.problems import load_problems
from training.results import Result, compare, table
from training.verify import Verifier

logger = logging.getLogger("demo")


class DemoConfig(Config):
    """Settings of the demonstration."""

    program: ClassVar[str] = "python -m demo"

    model: Path = Field(Path("models/tiny-qwen2"), description="A miniature base.")
    train: int = Field(240, ge=20, description="Problems given to fit.")
    questions: int = Field(500, ge=10, description="Held-out problems asked over HTTP.")
    samples: int = Field(4, ge=1, description="Answers per problem and model.")
    temperature: float = Field(0.6, gt=0)
    seed: int = Field(0, ge=0)
    output: Path = Path("runs/demo")


def run_module(*arguments: str) -> None:
    """Run `python -m arguments...`; a failure ends the demonstration with its exit code."""
    print(f"\n$ python -m {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step; return the report."""
    out = config.output
    train, heldout = out / "train.jsonl", out / "heldout.jsonl"
    for path, count, split in (
        (train, config.train, "train"),
        (heldout, config.questions, "heldout"),
    ):
        run_module(
            *("training.tiny", "problems", "--seed", str(config.seed)),
            *("--count", str(count), "--split", split, "--out", str(path)),
        )
    store = out / "store"
    run_module(
        *("training.fit", "--model", str(config.model), "--problems", str(train)),
        *("--output", str(store / "demo"), "--run-dir", str(out / "fit")),
        *("--seed", str(config.seed)),
    )
    fit_seconds = sum(json.loads((out / "fit" / "seconds.json").read_text()).values())

    with running_server("--model", str(config.model), "--adapters", str(store)) as server:
        results = ask(config, server.url, heldout)
    print("\n" + table(results))
    report = {result.label: result.report() for result in results} | {
        "differences": compare(results),
        "fit_seconds": round(fit_seconds, 1),
        "problems_fitted_on": config.train,
        "temperature": config.temperature,
        "seed": config.seed,
    }
    write_json(out / "report.json", report)
    print(f"\nfit took {fit_seconds:.0f} s; report: {out / 'report.json'}")
    return report


def ask(config: DemoConfig, url: str, heldout: Path) -> list[Result]:
    """Base, adapter at every step, and adapter at decision points: the same problems, over HTTP."""
    problems = load_problems(str(heldout))
    # Answers are kept by what gave them, so that a killed demonstration asks only the rest.
    base = BaseModel.open(str(config.model)).fingerprint
    adapter = sha256_file(config.output / "store" / "demo" / WEIGHTS)
    options = SamplingOptions(
        n=config.samples, temperature=config.temperature, max_tokens=192, seed=config.seed
    )
    with Verifier() as verifier:
        return [
            evaluate_url(
                Endpoint(url=f"{url}/v1", model=name),
                problems,
                options,
                verifier,
                mode=mode,
                source=heldout.name,
                label=mode,
                output=config.output / "answers",
                identity=identity,
            )
            for name, mode, identity in (
                (config.model.name, "base", base),
                ("demo", "always", adapter),
                ("demo:gated", "gated", adapter),
            )
        ]


def main() -> None:
    """Command line."""
    end_as_asked()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for client in ("httpx", "httpx2"):  # whichever of the two the openai client uses
        logging.getLogger(client).setLevel(logging.WARNING)
    demo(DemoConfig.load())


if __name__ == "__main__":
    main()
