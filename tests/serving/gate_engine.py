"""Run by the gate's tests in a process of its own: jobs on the real engine, one after the other.

    python gate_engine.py CASE RESULTS

CASE is a JSON file, {"model", "adapters": {name: folder}, "jobs": [...], "known": what the drafters
of gate_drafts.py know, or null}; a list of results goes to the file RESULTS.

A job: {"engine": LLM arguments, "waves": [[request, ...], ...], "abort": {step: [index]}, "reset":
[step], "pending": {"abort": [index], "reset": times, "sleep": times}, "hold": {index:
[other, tokens]}, "break": name or null}; what stands under "pending" is done while a replay is, and
a request under "hold" begins when the other one of its wave has given so many tokens. A request:
{"prompt", "adapter", "tau", "tokens"} and any SamplingParams; with "after": index its prompt goes
on where that request, of an earlier wave, ended; "regex" constrains its answer. Waves run to their
end before the next begins.
With PROMETHEUS_MULTIPROC_DIR set a result also holds what all processes counted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gate_drafts
import interpreter
import plain_experts

from vllm_gate.token_report import AnswerContext


def _interpret(asynchronous: bool) -> None:
    """vLLM's V2 runner on this CPU, under Triton's interpreter; before vLLM is imported."""
    interpreter.install()
    if asynchronous:
        from vllm.platforms.cpu import CpuPlatform

        stock = CpuPlatform.check_and_update_config.__func__

        def check(cls: Any, vllm_config: Any) -> None:
            stock(cls, vllm_config)  # switches it off
            vllm_config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = classmethod(check)


def _breakages_v2() -> dict[str, Any]:
    """The same in the V2 runner."""
    from vllm_gate import runner_v2

    mixin = runner_v2.GateV2

    def writes(self: Any, batch: Any) -> Any:
        return super(mixin, self).prepare_attn(batch)

    def keep_points() -> Any:
        stock, execute, known = mixin.add_requests, mixin.execute_model, {}

        def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name, slot in self.req_states.req_id_to_index.items():
                known[name] = int(self.table.point[slot])
            return execute(self, *args, **kwargs)

        def add_requests(self: Any, scheduler_output: Any) -> None:
            stock(self, scheduler_output)
            slots = self.req_states.req_id_to_index
            for new in scheduler_output.scheduled_new_reqs:
                self.table.point[slots[new.req_id]] = known.get(new.req_id, -1)

        return mock.patch.multiple(mixin, execute_model=execute_model, add_requests=add_requests)

    def reached(stock: Any) -> Any:
        def end(self: Any, output: Any, points: Any, batch: Any) -> Any:
            rejected = (output.num_sampled == points.first) & (points.first > 0)
            output.num_sampled = output.num_sampled + rejected.int()  # the last token's draft was
            return stock(self, output, points, batch)

        return end

    def first_rows(stock: Any) -> Any:
        def test(self: Any, logits: Any, batch: Any) -> Any:
            points, logits = stock(self, logits, batch)
            never = points.first.new_full((), 2**31 - 1)
            return points._replace(first=points.first.where(points.first == 0, never)), logits

        return test

    def always(stock: Any) -> Any:
        def take(self: Any, points: Any, *args: Any) -> Any:
            made, logits = stock(self, points._replace(first=points.first * 0), *args)
            never = points.first.new_full((), 2**31 - 1)
            return made._replace(first=points.first.where(~made.corrected, never)), logits

        return take

    def base_rows(stock: Any) -> Any:
        def mask(wrapper: Any, token: Any, row: Any) -> None:
            stock(wrapper, token | True, row | True)

        return mask

    return {
        "the replay writes": lambda: mock.patch.object(mixin, "prepare_attn", writes),
        "a preempted point is taken as known": keep_points,
        "a rejected draft counts as reached": _replaced(mixin, "end_at_points", reached),
        "drafts are not tested": _replaced(mixin, "test", first_rows),
        "a second row always gives the token": _replaced(mixin, "take_second", always),
        "second rows run the base": _replaced(runner_v2, "mask_loras", base_rows),
        "none": contextlib.nullcontext,
    }


def _replaced(owner: Any, name: str, ours: Any) -> Any:
    """A breakage: `owner.name` becomes what `ours` makes of it."""
    return lambda: mock.patch.object(owner, name, ours(getattr(owner, name)))


def _whole_rows(_: Any) -> Any:
    return lambda rows, counts, replays: rows.repeat(counts)


def _breakages() -> dict[str, Any]:
    """Ways to break the gate on purpose: name -> function that does it and returns the undoing."""
    from vllm_gate import runner_v1, scheduler
    from vllm_gate.cpu.seeds import SeededRows

    mixin, runner = scheduler.GateMixin, runner_v1.GateRunnerV1

    def keep_points() -> Any:
        """Go on with a decision point after a preemption that took the base's keys with it."""
        stock, known = mixin._plan, {}

        def plan(self: Any, output: Any) -> Any:
            known.update(
                {name: gate.point for name, gate in self._gates.items() if gate.point is not None}
            )
            made = stock(self, output)
            for name, step in made.items():
                position = self.requests[name].num_computed_tokens - 1
                if step.samples and known.get(name) == position:
                    self._gates[name].point = position
                    made[name] = step._replace(replays=True)
            return made

        return mock.patch.object(mixin, "_plan", plan)

    def lora_hashes(request: Any) -> None:
        """Keep the hashes that name the adapter."""
        request.lora_request = None

    return {
        "lora hashes": lambda: mock.patch.object(scheduler, "_become_base", lora_hashes),
        "the replay writes": _replaced(
            runner, "_get_slot_mappings", lambda _: SeededRows._get_slot_mappings
        ),
        "a preempted point is taken as known": keep_points,
        "no entropy": lambda: mock.patch.object(
            runner_v1, "entropy", lambda logits, rows: logits[rows].float().logsumexp(-1)
        ),
        "all tokens": _replaced(runner, "set_active_loras", lambda _: SeededRows.set_active_loras),
        **_breakages_of_drafts(),
        **_breakages_of_guidance(),
        "none": contextlib.nullcontext,
    }


def _breakages_of_drafts() -> dict[str, Any]:
    """The same, for speculative decoding."""
    from vllm_gate import runner_v1, scheduler

    runner, mixin = runner_v1.GateRunnerV1, scheduler.GateMixin

    def first_rows(stock: Any) -> Any:
        return lambda self, metadata: {
            name: rows[:1] for name, rows in stock(self, metadata).items()
        }

    def reached(stock: Any) -> Any:
        def end(self: Any, sampled: Any, tested: Any) -> None:
            for name, (point, _) in tested.items():
                if point is not None:
                    tokens = sampled[self.input_batch.req_id_to_index[name]]
                    tokens[point.place :] = -1
                    self._views[name] = scheduler.StepViews(point.view)

        return end

    def one_more(stock: Any) -> Any:
        def end(self: Any, sampled: Any, tested: Any) -> None:
            whole = sampled.clone()
            stock(self, sampled, tested)
            for name, (point, _) in tested.items():
                row = self.input_batch.req_id_to_index[name]
                if point is not None and point.place:
                    sampled[row, point.place] = whole[row, point.place]

        return end

    def one_position(stock: Any) -> Any:
        def read(self: Any, *args: Any) -> Any:
            rollbacks, answered = stock(self, *args)
            return [one._replace(positions=1) for one in rollbacks], answered

        return read

    return {
        "drafts are not tested": _replaced(runner, "_rows", first_rows),
        "a rejected draft counts as reached": _replaced(runner, "_end_at_points", reached),
        "the base's token stays": _replaced(runner, "_end_at_points", one_more),
        "a replay's drafts get the adapter": _replaced(runner_v1, "_of_first", _whole_rows),
        "one position is rolled back": _replaced(mixin, "_read", one_position),
    }


def _breakages_of_guidance() -> dict[str, Any]:
    """The same, for guidance at decision points."""
    from vllm_gate import runner_v1

    runner = runner_v1.GateRunnerV1

    def writes_nothing(stock: Any) -> Any:
        def mappings(self: Any, *args: Any, **kwargs: Any) -> Any:
            by_group, by_layer = stock(self, *args, **kwargs)
            for row in self._guided():
                for slots in by_group.values():
                    slots[self.query_start_loc.np[row] : self.query_start_loc.np[row + 1]] = -1
            return by_group, by_layer

        return mappings

    def unguided(stock: Any) -> Any:
        return lambda conditional, unconditional, scale: conditional

    return {
        "a guidance prompt writes nothing": _replaced(runner, "_get_slot_mappings", writes_nothing),
        "guidance prompts change nothing": _replaced(runner_v1, "guide", unguided),
        "the adapter reads the guidance prompt": _replaced(runner_v1, "_of_first", _whole_rows),
    }


class Counts(AnswerContext):
    """Follows all gated requests, as the server's metrics do: [generated, gated] tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = [0, 0]

    def tokens(self, sequence: Any, count: int, marks: list[Any]) -> None:
        """They go out now."""
        self.sums[0] += count
        self.sums[1] += sum(mark["gated"] for mark in marks)


COUNTS = Counts()
MOST_STEPS = 3000


def replays() -> int:
    """What the scheduler has counted so far."""
    from vllm_gate.counters import REPLAYS

    samples = (sample for metric in REPLAYS.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def pending(scheduler: Any) -> set[str]:
    """Requests whose gate has opened and whose replay has not given its token yet."""
    return {
        name.rpartition("-")[0]  # vLLM adds a random part to the id it was given
        for name, gate in getattr(scheduler, "_gates", {}).items()
        if gate.point is not None
    }


def start(case: dict[str, Any], job: dict[str, Any]) -> Any:
    """The engine of a job."""
    from vllm import LLM

    from vllm_gate import engine_args

    gate = job.get("gate", True)
    lora = {"enable_lora": True, "max_lora_rank": 64, "max_loras": 4} if gate else {}
    return LLM(
        **{
            "model": case["model"],
            "dtype": "float32",
            "skip_tokenizer_init": True,
            "max_model_len": 256,
            "max_num_seqs": 32,
            "block_size": 32,
            "kv_cache_memory_bytes": 2**25,
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        | lora
        | engine_args("cpu", gate=gate)
        | job.get("engine", {})
    )


def after(
    given: dict[str, Any], asked: list[dict[str, Any]], results: list[dict[str, Any]]
) -> dict[str, Any]:
    """A request, whose prompt begins with all of an earlier one where it says so."""
    if "after" not in given:
        return given
    index = given["after"]
    turn = {key: value for key, value in given.items() if key != "after"}
    return turn | {"prompt": asked[index]["prompt"] + results[index]["tokens"] + given["prompt"]}


def submit(engine: Any, case: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    """Put a request into the engine."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    asked = dict(given)
    if "regex" in asked:
        asked["structured_outputs"] = StructuredOutputsParams(regex=asked.pop("regex"))
    prompt, adapter, tau = asked.pop("prompt"), asked.pop("adapter"), asked.pop("tau")
    arguments, temperature = asked.pop("arguments", {}), asked.pop("correction_temperature", 1.0)
    guidance = {name: asked.pop(f"guidance_{name}", None) for name in ("scale", "prompt")}
    if tau is not None:
        arguments = arguments | {"gate_tau": tau, "correction_temperature": temperature}
        if guidance["prompt"]:
            arguments |= {f"guidance_{name}": value for name, value in guidance.items()}
    params = SamplingParams(
        **{"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        | {"max_tokens": asked.pop("tokens"), "extra_args": arguments or None}
        | asked
    )
    request = None
    if adapter is not None:
        number = 1 + list(case["adapters"]).index(adapter)
        request = LoRARequest(adapter, number, case["adapters"][adapter])
    engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=request)


def prompt_logprobs(output: Any) -> list[float] | None:
    """Of the prompt's tokens but the first, where they were asked for."""
    if output.prompt_logprobs is None:
        return None
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [best[token].logprob for token, best in pairs]


def disturb(engine: Any, amid: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """What a job asks for while a replay is pending."""
    waiting = pending(engine.engine_core.engine_core.scheduler)
    for index in [index for index in amid["abort"] if str(index) in waiting]:
        amid["abort"].remove(index)
        engine.abort_request([str(index)])
        results[index]["aborted"] = True
    if amid["reset"] and waiting:
        amid["reset"] -= 1
        engine.reset_prefix_cache(reset_running_requests=True)
    if amid["sleep"] and waiting:
        amid["sleep"] -= 1
        engine.sleep(1, mode="keep")
        assert engine.is_sleeping() and not engine.step()
        engine.wake_up()


def count_drafts(scheduler: Any) -> None:
    """Count what is drafted, what of it is accepted, and what is drafted behind a replay."""
    scheduler.drafts_seen = {"drafted": 0, "accepted": 0, "behind a replay": 0}
    stock = scheduler.make_spec_decoding_stats

    def make(*args: Any, **kwargs: Any) -> Any:
        scheduler.drafts_seen["drafted"] += kwargs["num_draft_tokens"]
        scheduler.drafts_seen["accepted"] += kwargs["num_accepted_tokens"]
        return stock(*args, **kwargs)

    scheduler.make_spec_decoding_stats = make
    scheduler.second_rows = 0
    stock_schedule = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = stock_schedule(*args, **kwargs)
        plan = getattr(output, "gate_plan", {})
        scheduler.second_rows += sum(step.two_rows for step in plan.values())
        scheduler.drafts_seen["behind a replay"] += sum(
            step.replays and name in output.scheduled_spec_decode_tokens
            for name, step in plan.items()
        )
        return output

    scheduler.schedule = schedule


def answer(output: Any) -> dict[str, Any]:
    """What a request has been answered so far."""
    from vllm_gate import GateReport

    first = output.outputs[0]
    report = GateReport.of(output)
    params = output.kv_transfer_params or {}
    return {
        "tokens": list(first.token_ids),
        "text": first.text,
        "gated": None if report is None else report.gated_tokens,
        "trace": [] if report is None else list(report.trace),
        "cached": output.num_cached_tokens,
        "params": {key: params[key] for key in params if key != "gate"} or None,
        "finish": first.finish_reason,
        "stop": first.stop_reason,
        "logprobs": [
            best[token].logprob
            for token, best in zip(first.token_ids, first.logprobs or [], strict=False)
        ],
        "prompt_logprobs": prompt_logprobs(output),
    }


def run(case: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """One job on a fresh engine."""
    llm = start(case, job)
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    before, replays_before = list(COUNTS.sums), replays()
    preempted = 0
    stock_preempt = scheduler._preempt_request

    def preempt(*args: Any, **kwargs: Any) -> None:
        nonlocal preempted
        preempted += 1
        stock_preempt(*args, **kwargs)

    scheduler._preempt_request = preempt
    count_drafts(scheduler)
    results: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    steps = 0
    resets, aborts = set(job.get("reset", [])), job.get("abort", {})
    amid = {"abort": [], "reset": 0, "sleep": 0} | job.get("pending", {})
    for turns in job["waves"]:
        offset = len(results)
        wave = [after(given, asked, results) for given in turns]
        asked += wave
        held = dict(job.get("hold", {}))
        for index, given in enumerate(wave):
            results.append({"tokens": [], "gated": None, "trace": []})
            if str(index) not in held:
                submit(engine, case, str(offset + index), given)
        while engine.has_unfinished_requests():
            steps += 1
            for index, (other, tokens) in list(held.items()):
                if len(results[offset + other]["tokens"]) >= tokens:
                    del held[index]
                    submit(engine, case, str(offset + int(index)), wave[int(index)])
            if steps in resets:
                engine.reset_prefix_cache(reset_running_requests=True)
            for index in aborts.get(str(steps), []):
                engine.abort_request([str(index)])
                results[index]["aborted"] = True
            if steps > MOST_STEPS:  # an engine that is broken on purpose
                engine.abort_request([str(index) for index in range(len(results))])
            for output in engine.step():
                results[int(output.request_id)] |= answer(output)
            disturb(engine, amid, results)
    leaked = getattr(scheduler, "_gates", {})
    manager = scheduler.kv_cache_manager
    result = {
        "results": results,
        "preempted": preempted,
        "kind": [type(scheduler).__name__, bool(engine.vllm_config.use_v2_model_runner)],
        "steps": steps,
        "drafts": scheduler.drafts_seen,
        "second rows": scheduler.second_rows,
        "ranks": engine.vllm_config.parallel_config.tensor_parallel_size,
        "counted": [now - then for now, then in zip(COUNTS.sums, before, strict=True)],
        "replays": replays() - replays_before,
        "left": [len(leaked), len(scheduler.requests), round(manager.usage, 6)],
    }
    scheduler._preempt_request = stock_preempt
    engine.engine_core.shutdown()  # the processes of its ranks, too
    del engine, scheduler, manager, llm
    gc.collect()
    return result


def main() -> None:
    """All jobs of a case."""
    given, results = map(Path, sys.argv[1:])
    case = json.loads(given.read_text())
    if case.get("known"):
        known = given.with_name("known.json")
        known.write_text(json.dumps(case["known"]))
        os.environ[gate_drafts.KNOWN] = str(known)
    if case.get("runner", "v1") != "v1":
        _interpret(case["runner"] == "v2 async")
        if case.get("known"):
            gate_drafts.instead_of_ngrams()
    if "gpt_oss" in (Path(case["model"]) / "config.json").read_text():
        plain_experts.install()
    from vllm_gate import token_report

    token_report.install()
    token_report.ANSWER.set(COUNTS)
    breakages = _breakages() if case.get("runner", "v1") == "v1" else _breakages_v2()
    done = []
    for job in case["jobs"]:
        with breakages[job.get("break") or "none"]():
            done.append(run(case, job))
    results.write_text(json.dumps(done))


if __name__ == "__main__":
    main()
