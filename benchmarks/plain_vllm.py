"""vLLM's own OpenAI server, with none of this project's plugins: what a user of plain vLLM gets.

    python -m benchmarks.plain_vllm --model models/tiny-qwen2 --enable-lora --lora-modules NAME=DIR

All flags are vLLM's. `vllm serve` does the same; that of the CPU wheel fails, because it looks for
the metadata of a distribution named `vllm`.
"""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    os.environ["VLLM_PLUGINS"] = ""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import uvloop
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from serving.vllm_versions import CLI_ARGS, RUN_SERVER, find

    run_server = find("run_server", RUN_SERVER)
    make_arg_parser = find("make_arg_parser", CLI_ARGS)
    validate_parsed_serve_args = find("validate_parsed_serve_args", CLI_ARGS)

    parser = make_arg_parser(FlexibleArgumentParser(prog="python -m benchmarks.plain_vllm"))
    args = parser.parse_args(argv)
    validate_parsed_serve_args(args)
    uvloop.run(run_server(args))


if __name__ == "__main__":
    main(sys.argv[1:])
