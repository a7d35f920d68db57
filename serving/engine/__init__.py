"""All that touches vLLM's private parts, and the version it was written for.

    admission.py   asks our registry before vLLM looks up a model's name
    cpu_lora.py    CPU LoRA kernels that give base rows base outputs
    cpu_seeds.py   seeded requests whose prompt is computed in pieces, on the CPU

tests/serving/test_engine_parts.py fails when vLLM changes under these.
"""

WRITTEN_FOR = "0.32"


def supported() -> bool:
    """Whether the installed vLLM is the one these files were written for."""
    from vllm.version import __version_tuple__

    major, minor = WRITTEN_FOR.split(".")
    return tuple(__version_tuple__[:2]) == (int(major), int(minor))
