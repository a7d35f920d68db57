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
    from serving import engine
    from serving.engine import cpu_lora, cpu_sampling, cpu_seeds

    if not engine.supported():
        logger.warning(
            "vLLM's CPU build left as it is: the corrections were written for vLLM %s.x; base "
            "requests beside an adapter's may get its output, a seeded one may end the engine",
            engine.WRITTEN_FOR,
        )
        return
    cpu_lora.install()
    cpu_seeds.install()
    cpu_sampling.install()
