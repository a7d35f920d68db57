"""One command: `python -m loadtests --host http://127.0.0.1:8000 --users 8 --seconds 30`.

Makes the problems if there is no file of them, runs locust headless and leaves its tables and
summary.json in runs/loadtest/. Other flags are locust's, or locustfile.py's (`--mix`, ...). The
exit code is locust's: 1 if any request failed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def make_problems(path: Path, count: int = 200) -> None:
    """Write problems of the miniature family to `path` (JSONL)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.tiny", "problems", "--seed", "7"]
    command += ["--split", "heldout", "--count", str(count), "--out", str(path)]
    subprocess.run(command, check=True)


def main(argv: list[str]) -> int:
    """Run the load test. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", allow_abbrev=False)
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="server (%(default)s)")
    parser.add_argument("--users", type=int, default=8, help="at a time (%(default)s)")
    parser.add_argument("--seconds", type=int, default=30, help="how long (%(default)s)")
    parser.add_argument("--problems", type=Path, help="JSONL with `problem`; made if left out")
    parser.add_argument("--results", type=Path, default=Path("runs/loadtest"))
    options, rest = parser.parse_known_args(argv)
    problems = options.problems
    if problems is None:
        problems = options.results / "problems.jsonl"
        if not problems.exists():
            make_problems(problems)
    options.results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["--host", options.host, "--users", str(options.users)]
    command += ["--spawn-rate", str(options.users), "--run-time", f"{options.seconds}s"]
    command += ["--problems", str(problems), "--results", str(options.results)]
    command += ["--csv", str(options.results / "locust"), "--only-summary", *rest]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
