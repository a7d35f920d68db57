"""The general plugin: loaded by every vLLM process of this environment, our server's or not.

It only corrects faults of vLLM's CPU build; everything else is set up by our launcher alone.
"""

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Entry point of `vllm.general_plugins`; vLLM may call it several times in a process."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import vllm_gate
    from vllm_gate.cpu import lora_kernels, sampling, seeds

    if not vllm_gate.supported():
        logger.warning(
            "vLLM's CPU build left as it is: the corrections were written for vLLM %s.x; base "
            "requests beside an adapter's may get its output, a seeded one may end the engine",
            vllm_gate.WRITTEN_FOR,
        )
        return
    lora_kernels.install()
    seeds.install()
    sampling.install()
