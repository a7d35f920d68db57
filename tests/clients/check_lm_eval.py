# /// script
# requires-python = ">=3.11"
# dependencies = ["lm-eval[api]==0.4.13", "transformers"]
# ///
"""lm-eval: a generating task on the gated name, a task of log-probabilities on every name.

    uv run tests/clients/check_lm_eval.py http://127.0.0.1:8000

The tasks that the page names come from the hub. Two small ones of the same kinds stand for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from page import ADAPTER, BASE, commands

ROWS = [{"question": f"What is {a}+{a + 1}?", "answer": str(2 * a + 1)} for a in range(2, 6)]
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: "{{question}}"
"""
SUMS = """
task: sums
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false}
metric_list: [{metric: exact_match}]
"""
CHOICES = """
task: choices
output_type: multiple_choice
doc_to_choice: ["5", "7"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def evaluate(words: list[str], folder: Path, output: str) -> tuple[int, str]:
    """Run a command of the page. Returns its exit code and what it printed."""
    program = [sys.executable, "-m", "lm_eval", *words[1:]]
    more = ["--include_path", str(folder), "--output_path", str(folder / output), "--log_samples"]
    ended = subprocess.run([*program, *more], capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def samples(folder: Path) -> list[Any]:
    """What lm-eval has written of each sample."""
    (file,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def main() -> None:
    """Run both commands of the page, and the second with the gated name and the base."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        for name, task in (("sums", SUMS), ("choices", CHOICES)):
            (folder / f"{name}.yaml").write_text(COMMON % rows + task)
        generate, choose = commands("lm-eval", {"gsm8k": "sums", "arc_easy": "choices"})

        code, text = evaluate(generate, folder, "generated")
        assert code == 0, text
        answers = [sample["resps"][0][0] for sample in samples(folder / "generated")]
        assert len(answers) == len(ROWS) and all(answers), answers

        told = {}
        for name in (ADAPTER, f"{ADAPTER}:gated", Path(BASE).name):
            asked = [word.replace(f"model={ADAPTER},", f"model={name},") for word in choose]
            output = name.replace(":", "-")
            code, text = evaluate(asked, folder, output)
            assert code == 0, text
            told[name] = [sample["resps"] for sample in samples(folder / output)]
            assert len(told[name]) == len(ROWS)
        plain, gated, base = told.values()
        assert gated == base != plain, told
    print("lm-eval: all checks passed")


if __name__ == "__main__":
    main()
