r"""How often a model is right: pass@1, avg@k, pass@k with standard errors, \boxed{} rate, length.

In process, the base and an adapter of it, at every step and at decision points only, on the same
problems, with the paired differences:

    python -m training.evaluate --model models/tiny-qwen2 --adapter tiny-math \
        --problems problems.jsonl --samples 4 --output runs/evaluate

Over any OpenAI-compatible server, one model or several (the first is the one compared against):

    python -m training.evaluate --url http://127.0.0.1:8000/v1 --models tiny-qwen2,tiny-math \
        --problems problems.jsonl --output runs/evaluate

Answers lie in OUTPUT/answers-LABEL-DIGEST/*.parquet, the digest being that of everything that they
depend on: the same command after a kill asks only what is missing. The figures are in
OUTPUT/report.json.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from adapters.adapter import CONFIG, AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import sha256_file, write_json
from adapters.manifest import Mode
from adapters.places import default_store, open_store
from adapters.program import program
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from training.evaluate_config import EvaluateConfig
from training.evaluation import (
    Endpoint,
    Evaluation,
    Result,
    ServerError,
    compare,
    evaluate_generator,
    evaluate_url,
    table,
)
from training.generation import Applied, SamplingOptions, longest_sequence, open_generator
from training.grading import Verifier
from training.hf_model import open_base
from training.problems import Problem, load_problems, source_name, write_problems
from training.run_folder import held
from training.seen_problems import compared_with_training

logger = logging.getLogger("training.evaluate")


def evaluate(config: EvaluateConfig) -> list[Result]:
    """Run the evaluation that `config` describes, write its report, return the results.

    Raises:
        ValueError: a setting that only its files could prove wrong.
        ServerError: the server refused.
    """
    problems = load_problems(config.problems, limit=config.limit, **config.reading)
    problems, seen = compared_with_training(config, problems)
    logger.info("%d problems, %d answers each", len(problems), config.answers_each)
    ways = _over_url if config.url else _in_process
    if config.output is None:
        with Verifier(config.deadline) as verifier:
            return ways(config, problems, verifier)
    with held(config.output, "--output"), Verifier(config.deadline) as verifier:
        config.save(config.output / "evaluate.yaml")
        # Answers can be graded again from these and the parts.
        write_problems(config.output / "problems.jsonl", problems)
        results = ways(config, problems, verifier)
        report = {
            "problems": source_name(config.problems),
            "results": {result.label: result.report(config.ks) for result in results},
            "differences": compare(results),
            "overlaps": seen,
        }
        write_json(config.output / "report.json", report)
    return results


def _options(config: EvaluateConfig, max_tokens: int) -> SamplingOptions:
    return SamplingOptions(
        n=config.answers_each,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens or max_tokens,
        seed=config.seed,
    )


def _over_url(
    config: EvaluateConfig, problems: Sequence[Problem], verifier: Verifier
) -> list[Result]:
    names = config.models or [str(config.model)]
    # The first is the baseline, and names say which are gated, unless --mode says otherwise.
    default: list[Mode] = [
        "base" if place == 0 else "gated" if name.endswith(":gated") else "always"
        for place, name in enumerate(names)
    ]
    return [
        evaluate_url(
            Endpoint(
                url=str(config.url),
                model=name,
                api_key=os.environ[config.api_key_env] if config.api_key_env else None,
                concurrency=config.concurrency,
                retries=config.retries,
                timeout=config.timeout,
                extra_body=config.extra_body,
            ),
            problems,
            _options(config, 2048),
            verifier,
            mode=mode,
            source=source_name(config.problems),
            output=config.output,
            identity=str(config.url),
        )
        for name, mode in zip(names, config.mode or default, strict=True)
    ]


def _in_process(
    config: EvaluateConfig, problems: Sequence[Problem], verifier: Verifier
) -> list[Result]:
    base = open_base(str(config.model))
    version = find_adapter(config.adapter, config.store, base) if config.adapter else None
    manifest = version.manifest if version else None
    recipe = recipe_for(base, config.family, manifest.family if manifest else "")
    options = _options(config, recipe.sampling.max_tokens)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    longest = max(len(renderer.token_ids(problem.problem)) for problem in problems)
    ways = {mode: _applied(config, mode, version) for mode in _modes(config, version)}
    # The same weights do something else with another lora_alpha.
    scaling = sha256_file(version.path / CONFIG) if version else ""
    # Each engine draws other answers from the same seeds.
    identity = " ".join([base.fingerprint, *([config.engine] if config.engine != "auto" else [])])
    source = source_name(config.problems)
    asked = Evaluation(problems, renderer, options, verifier, source, config.output, identity)
    with open_generator(
        str(base.folder),
        engine=config.engine,
        max_rank=version.rank if version and any(ways.values()) else None,
        gated="gated" in ways,
        max_model_len=longest_sequence(str(base.folder), longest, options.max_tokens),
        seed=config.seed,
        tensor_parallel_size=config.tensor_parallel_size,
        data_parallel_size=config.data_parallel_size,
    ) as generator:
        return [
            evaluate_generator(
                generator,
                asked if applied is None else asked._replace(identity=f"{identity} {scaling}"),
                applied,
                f"{mode} (random gate)" if applied and applied.random_rate else mode,
            )
            for mode, applied in ways.items()
        ]


def _modes(config: EvaluateConfig, version: AdapterVersion | None) -> list[Mode]:
    """The modes asked for; by default all that the adapter can run in."""
    if config.mode or version is None:
        return config.mode or ["base"]
    return ["base", "always", "gated"] if version.gate else ["base", "always"]


def _applied(config: EvaluateConfig, mode: Mode, version: AdapterVersion | None) -> Applied | None:
    """The adapter and where it runs in `mode`; None for the base."""
    if mode == "base" or version is None:
        return None
    if mode == "always":
        return Applied(version.path)
    gate = version.gate
    if gate is None and config.tau is None:
        raise ValueError(
            "--adapter: it has no threshold; give --tau, or measure one with `reasonmaxxer store "
            "calibrate`"
        )
    if gate is not None and config.gate == "random":
        return Applied.at_random(version.path, gate, config.gate_rate)
    return Applied.behind(version.path, gate, config.tau, config.gate_rate)


def find_adapter(name: str, store: Path | str | None, base: BaseCheckpoint) -> AdapterVersion:
    """The adapter that `name` means, a folder or a name in `store`, checked against `base`.

    Args:
        store: None: the default store.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    if (Path(name) / CONFIG).is_file():
        version = AdapterVersion.read(Path(name))
        version.check_fits(base)
        return _as_peft_writes(version)
    adapters = open_store(store or default_store())
    try:
        return _as_peft_writes(adapters.get(name, base))
    except KeyError:
        known = ", ".join(adapters.names()) or "none"
        raise ValueError(
            f"--adapter: '{name}' is neither an adapter folder nor in {adapters.place} ({known})"
        ) from None


def _as_peft_writes(version: AdapterVersion) -> AdapterVersion:
    """The adapter, if engines can read its folder as it is."""
    changes = version.folder.changes({})
    if changes:
        raise ValueError(
            f"--adapter: '{version.name}' is not in the form that PEFT writes ({changes[0]} at an "
            f"import); import it: reasonmaxxer store import {version.path} --base MODEL"
        )
    return version


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input, 1 if the run fails."""
    config = EvaluateConfig.begin(argv)
    # Every request is logged at INFO.
    for client in ("httpx", "httpx2"):  # whichever of the two the openai client uses
        logging.getLogger(client).setLevel(logging.WARNING)
    logger.info("settings:\n%s", config.to_yaml())
    try:
        with config.usage_errors(), logging_redirect_tqdm():
            results = evaluate(config)
    except ServerError as error:
        print(f"{program(config.program)}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(table(results, config.ks))


if __name__ == "__main__":
    main()
