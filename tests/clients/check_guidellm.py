# /// script
# requires-python = ">=3.11"
# dependencies = ["guidellm==0.8.1"]
# ///
"""guidellm: the page's command, with a few requests.

uv run tests/clients/check_guidellm.py http://127.0.0.1:8000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from page import ADAPTER, commands

MORE = {"count=100": "count=4", '"api_key": "-"': f'"api_key": "{os.environ["OPENAI_API_KEY"]}"'}


def main() -> None:
    """Run the command, and the same for the plain adapter."""
    (words,) = commands("guidellm", MORE)
    backend = words.index("--backend") + 1
    plain = json.loads(words[backend]) | {"model": ADAPTER, "extras": None}
    program = str(Path(sys.executable).with_name("guidellm"))
    for told in (words[backend], json.dumps(plain)):
        with tempfile.TemporaryDirectory() as folder:
            line = [*words[1:backend], told, *words[backend + 1 :]]
            file = Path(folder, "report.json")
            output = ["--output", f"kind=json,path={file}", "--disable-console-interactive"]
            ended = subprocess.run(
                [program, *line, *output], capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            (benchmark,) = json.loads(file.read_text())["benchmarks"]
            totals = benchmark["metrics"]["request_totals"]
            assert (totals["successful"], totals["errored"]) == (4, 0), totals
    print("guidellm: all checks passed")


if __name__ == "__main__":
    main()
