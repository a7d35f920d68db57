"""The gate inside vLLM: an adapter that runs at uncertain positions only.

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm_gate import GateParams, GateReport, engine_args

    llm = LLM("models/tiny-qwen2", enable_lora=True, **engine_args("cpu"))
    params = SamplingParams(max_tokens=64, extra_args=GateParams(tau=0.8).extra_args())
    (output,) = llm.generate(["3 + 4 * 2 ="], params, lora_request=LoRARequest("math", 1, folder))
    GateReport.of(output).gated_tokens  # how many tokens the adapter has chosen

docs/vllm-plugin.md shows the same with `vllm serve`.

    engine_arguments.py  engine_args: scheduler, worker and request arguments of the engine
    params.py            GateParams: what a request may ask; arguments.py checks it at admission
    token_report.py      GateReport: gated tokens on their way to the front end
    answers.py           ASGI middleware: the report in OpenAI answers
    compat.py            what the gate cannot work with
    scheduler.py         replay: decision points, and positions taken back
    guidance.py          away from a negative prompt, at decision points
    two_rows.py          base and adapter side by side in one step
    turns.py             more adapters than LoRA slots; pins.py which keep theirs
    step_plan.py         what the scheduler tells the workers about gated requests
    runner_v1.py         replay in the model runner of the CPU build
    runner_v2.py         replay in the model runner of GPUs; device_state.py its state there
    gpu_worker.py        the worker that has this runner
    base_top_tokens.py   what the base thought at a decision point
    counters.py          Prometheus counters, kept by the scheduler
    worker_extension.py  which adapters a worker holds, and where
    model_check.py       a question that is asked before vLLM looks a model's name up
    patches.py           the table of everything that is replaced in vLLM
    cpu/                 the worker of the CPU build, and corrections of that build

This package imports `adapters` alone. `training` and `serving` both use it.
"""

from vllm_gate.engine_arguments import engine_args
from vllm_gate.errors import GateError
from vllm_gate.params import GateParams
from vllm_gate.token_report import GateReport, TracedToken

__all__ = ["GateError", "GateParams", "GateReport", "TracedToken", "engine_args"]
