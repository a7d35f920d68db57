"""Run by test_complaints.py in a process of its own: what stock vLLM does with adapters.

stdin: {"base", "adapter", "other", "foreign", "store"}. Last line of stdout: what was seen. Started
with VLLM_PLUGINS empty, so nothing of ours is loaded.
"""

import asyncio
import json
import shutil
import sys
from collections import defaultdict
from typing import Any

from vllm import LLM, SamplingParams
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver


def main() -> None:
    """Print the findings."""
    case = json.load(sys.stdin)
    loads = 0
    stock_load = WorkerLoRAManager._load_adapter

    def counting(self: Any, request: Any) -> Any:
        nonlocal loads
        loads += 1
        return stock_load(self, request)

    WorkerLoRAManager._load_adapter = counting
    llm = LLM(
        model=case["base"],
        dtype="float32",
        enable_lora=True,
        max_lora_rank=8,
        max_loras=1,
        max_cpu_loras=4,
        max_model_len=256,
        block_size=32,
        kv_cache_memory_bytes=2**26,
        generation_config="vllm",
    )
    prompt = {"prompt_token_ids": [5 + i % 40 for i in range(80)]}
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def ask(**request: Any) -> Any:
        (answer,) = llm.generate([prompt], greedy, lora_request=LoRARequest(**request))
        return answer

    found: dict[str, Any] = {}
    alpha = {"lora_name": "alpha", "lora_int_id": 1, "lora_path": case["adapter"]}
    ask(**alpha)
    shutil.rmtree(case["adapter"])
    shutil.copytree(case["other"], case["adapter"])
    loads = 0
    reloaded = ask(**alpha, load_inplace=True)
    found["loads of one request of 12 tokens"] = loads
    found["tokens taken from the old content's cache"] = reloaded.num_cached_tokens

    models = OpenAIServingModels.__new__(OpenAIServingModels)
    models.lora_requests = {"alpha": LoRARequest(**alpha)}
    models.lora_resolver_lock = defaultdict(asyncio.Lock)
    asyncio.run(models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="alpha")))
    found["in the engine after unloading"] = sorted(llm.llm_engine.list_loras())

    foreign = ask(lora_name="foreign", lora_int_id=2, lora_path=case["foreign"])
    found["tokens by an adapter made for other weights"] = len(foreign.outputs[0].token_ids)

    resolver = FilesystemResolver(case["store"])
    outside = asyncio.run(resolver.resolve_lora(case["base"], "../outside"))
    found["path of ../outside"] = outside.lora_path if outside else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
