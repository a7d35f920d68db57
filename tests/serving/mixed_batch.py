"""Run by test_cpu_lora.py in a process of its own: a mixed batch on vLLM's kernels, then on ours.

stdin: {"base", "adapter", "prompts"}. Last line of stdout: {"stock": [[id, ...], ...], "ours": _},
rows in turn base and adapter. The kernels begin as vLLM's.
"""

import json
import sys

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    """Print both outputs."""
    case = json.load(sys.stdin)
    llm = LLM(
        model=case["base"],
        dtype="float32",
        enable_lora=True,
        max_lora_rank=8,
        max_loras=1,
        max_model_len=256,
        kv_cache_memory_bytes=2**27,
        enable_prefix_caching=False,
        generation_config="vllm",
    )
    adapter = LoRARequest("alpha", 1, case["adapter"])
    tokenize = llm.get_tokenizer()
    prompts = [
        {"prompt_token_ids": tokenize(prompt, add_special_tokens=False)["input_ids"]}
        for prompt in case["prompts"]
        for _ in range(2)
    ]
    loras = [None, adapter] * len(case["prompts"])
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)

    def run() -> list[list[int]]:
        answers = llm.generate(prompts, greedy, lora_request=loras, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    outputs = {"stock": run()}
    from vllm_gate import patches

    patches.install("cpu")
    outputs["ours"] = run()
    print(json.dumps(outputs))


if __name__ == "__main__":
    main()
