"""vllm bench serve: the page's command, with this environment's vLLM.

python tests/clients/check_vllm_bench.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from page import ADAPTER, commands


def main() -> None:
    """Run the command, and the same for the plain adapter, with a few requests each."""
    from vllm.benchmarks import serve

    (words,) = commands("vllm bench serve", {"--num-prompts 100": "--num-prompts 4"})
    assert words[:3] == ["vllm", "bench", "serve"]
    plain = [ADAPTER if word == f"{ADAPTER}:gated" else word for word in words]
    at = plain.index("--extra-body")
    del plain[at : at + 2]
    for line in (words, plain):
        parser = argparse.ArgumentParser()
        serve.add_cli_args(parser)
        with tempfile.TemporaryDirectory() as folder:
            more = ["--save-result", "--result-dir", folder, "--disable-tqdm"]
            result = serve.main(parser.parse_args([*line[3:], *more]))
            assert list(Path(folder).iterdir())
        assert (result["completed"], result["failed"]) == (4, 0), result
        assert result["total_output_tokens"] > 0
    print("vllm bench serve: all checks passed")


if __name__ == "__main__":
    main()
