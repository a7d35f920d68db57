"""The server's log: lines for people, or one JSON object a line for machines (--log-format json).

Both carry the same fields. vLLM's own lines keep vLLM's form (VLLM_LOGGING_LEVEL,
VLLM_LOGGING_CONFIG_PATH).
"""

from __future__ import annotations

import logging
from typing import Literal

import structlog


def configure(log_format: Literal["text", "json"]) -> None:
    """Have `serving` and all below it write to standard error in this form."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(sort_keys=False)
        if log_format == "json"
        # Plain tracebacks: rich ones show local variables, with prompts and keys in them.
        else structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        renderer,
    ]
    if log_format == "json":
        last[1:1] = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
        ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)
    )
    logger = logging.getLogger("serving")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
