"""A built wheel, installed into an empty environment, fits and serves. `make wheel-test` runs this.

    python -m tests.wheel            # a few minutes, most of them starts of vLLM
    python -m tests.wheel --quick    # the wheel's content, and what it does without extras: seconds

Everything happens in a temporary folder, so nothing of the repository can be imported by accident:
the wheel is built from a copy, installed into a virtual environment of its own with the extras
serve, train and cpu, and asked to diagnose itself, to fit a tiny adapter, to list it, and to answer
a chat completion with it, at every step and gated. Before that it is installed without extras: the
store and the doctor then work, and the other commands name what they need. uv installs from its
cache where it has one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.server import free_port

ROOT = Path(__file__).parents[1]
BASE = ROOT / "models" / "tiny-qwen2-hurried"  # its answers are right about every other time
EXTRAS = "serve,train,cpu"
NAME = "mine"
START_SECONDS = 300.0
# What a wheel is built from, beside the packages that pyproject.toml names.
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


class WheelError(Exception):
    """The wheel does not do what it should; the message says what."""


# ------------------------------------------------------------------------------------ the wheel


def build(folder: Path) -> Path:
    """Build the wheel in `folder`, from a copy: an old build/ in the checkout cannot leak in."""
    source = folder / "source"
    for path in tracked():
        if path.parts[0] in packages() or str(path) in SOURCES:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, source / path)
    run("uv", "build", "--wheel", "--quiet", "--out-dir", folder / "dist", source)
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def tracked() -> list[Path]:
    """The files of the checkout that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def packages() -> set[str]:
    """The top-level packages of the wheel."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {
        name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }


def expected_files() -> set[str]:
    """Code and data of the packages; the shipped store belongs to the checkout alone."""
    return {
        str(path)
        for path in tracked()
        if path.parts[0] in packages() and path.parts[:2] != ("adapters", "store")
    }


def check_contents(wheel: Path) -> None:
    """The wheel holds every file of the packages, and no other but its own metadata.

    Raises:
        WheelError: a file is missing, or does not belong there.
    """
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        points = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        declared = archive.read(points).decode()
    expected = expected_files()
    if missing := sorted(expected - held):
        raise WheelError(
            f"not in the wheel: {', '.join(missing)}; see package-data in pyproject.toml"
        )
    if foreign := sorted(held - expected):
        raise WheelError(f"in the wheel by mistake: {', '.join(foreign)}")
    if "reasonmaxxer = reasonmaxxer.cli:main" not in declared:
        raise WheelError(f"the wheel has no console script: {declared}")
    print(f"{wheel.name}: {len(held)} files, {wheel.stat().st_size / 1e6:.1f} MB")


# ---------------------------------------------------------------------------- its environment


def install(wheel: Path, folder: Path, extras: str = "") -> Path:
    """Install the wheel into a new environment; returns the folder of its programs."""
    environment = folder / "venv"
    run("uv", "venv", "--quiet", "--python", sys.executable, environment)
    programs = environment / "bin"
    # uv reads none of pip's settings.
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    index = ["--find-links", links] if links else ["--torch-backend", "cpu"]
    run(
        *("uv", "pip", "install", "--quiet", "--python", programs / "python", *index),
        *("--override", ROOT / "overrides-cpu.txt", f"reasonmaxxer[{extras}] @ {wheel.as_uri()}"),
    )
    return programs


def run(*command: object) -> None:
    """Run a tool of this environment; a failure ends the test with the tool's own words."""
    program, *arguments = map(str, command)
    beside = Path(sys.executable).parent / program
    subprocess.run([str(beside) if beside.is_file() else program, *arguments], check=True)


class Installed:
    """The wheel's console script, run in a working directory outside the repository."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.script = programs / "reasonmaxxer"
        self.work, home = folder / "work", folder / "home"
        for one in (self.work, home):
            one.mkdir(parents=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "REASONMAXXER_", "XDG_", "VIRTUAL_ENV"))
        }
        self.environment = kept | {
            "HOME": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What a command prints.

        Raises:
            WheelError: it ends with another exit code than `code`.
        """
        begun = time.monotonic()
        done = subprocess.run(
            [str(self.script), *map(str, arguments)],
            cwd=self.work, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(f"{time.monotonic() - begun:6.1f} s  reasonmaxxer {' '.join(map(str, arguments))}",
              flush=True)  # fmt: skip
        if done.returncode != code:
            raise WheelError(
                f"reasonmaxxer {arguments[0]} ended with {done.returncode}, not {code}:\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
            )
        return done.stdout + (done.stderr if code else "")

    @contextmanager
    def serving(self, *arguments: object) -> Iterator[str]:
        """The URL of a server that is healthy."""
        port = free_port()
        url, log = f"http://127.0.0.1:{port}", self.work / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(self.script), "serve", *map(str, arguments), "--port", str(port)],
                cwd=self.work, env=self.environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            until = time.monotonic() + START_SECONDS
            while not answers(f"{url}/health"):
                if process.poll() is not None or time.monotonic() > until:
                    raise WheelError(
                        f"no healthy server:\n{log.read_text(errors='replace')[-6000:]}"
                    )
                time.sleep(0.2)
            yield url
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise WheelError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    """Whether something answers at `url` with success."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer to a JSON request."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            answer: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as error:
        raise WheelError(f"{url}: {error.code} {error.read().decode(errors='replace')}") from error
    return answer


# ------------------------------------------------------------------------------------ the walk


def walk_without_extras(reasonmaxxer: Installed) -> None:
    """The store and the doctor work; the other commands say what they need.

    Raises:
        WheelError: one of them does something else.
    """
    said = reasonmaxxer("doctor")
    expect("vLLM is not installed" in said, f"the doctor does not miss vLLM: {said}")
    expect("torch is not installed" in said, f"the doctor does not miss torch: {said}")
    reasonmaxxer("store", "--help")
    for command in ("fit", "evaluate", "grade"):
        said = reasonmaxxer(command, code=1)
        expect("pip install 'reasonmaxxer[train]'" in said, f"{command} says: {said}")
    said = reasonmaxxer("serve", "--model", "any", code=1)
    expect("pip install 'reasonmaxxer[serve,gpu]'" in said, f"serve says: {said}")


def walk(reasonmaxxer: Installed, folder: Path) -> None:
    """Help, doctor, fit, grade, store, serve: as a newcomer would, in an empty folder.

    Raises:
        WheelError: one of them does not do what it should.
    """
    expect("fit" in reasonmaxxer("--help"), "the help does not name the commands")
    expect("usage: reasonmaxxer fit" in reasonmaxxer("fit", "--help"), "fit has the wrong usage")
    said = reasonmaxxer("serve", code=2)
    expect("name a base model" in said, f"serve without a model says: {said}")

    found = json.loads(reasonmaxxer("doctor", "--json"))
    expect(found["serving"]["works"] and found["gate"]["works"], f"not supported: {found}")
    for extra in EXTRAS.split(","):
        expect(found["extras"][extra]["installed"], f"extra {extra}: {found['extras'][extra]}")
    store = Path(found["store"]["path"])
    data = Path(reasonmaxxer.environment["HOME"], ".local", "share", "reasonmaxxer", "store")
    expect(store == data, f"the default store is {store}, not {data}")

    model = folder / BASE.name
    shutil.copytree(BASE, model)
    problems = write_problems(folder / "problems.jsonl", 60)
    reasonmaxxer(
        *("fit", "--model", model, "--problems", problems, "--publish", NAME, "--engine", "vllm"),
        *("--sampling.rollouts", 8, "--sampling.max-tokens", 96, "--selection.problems", 16),
        *("--checkpoints.problems", 12, "--checkpoints.rollouts", 4, "--optimizer.epochs", 0.5),
    )
    [row] = json.loads(reasonmaxxer("store", "list", "--json"))
    expect(row["name"] == NAME and row["state"] == "ok", f"the store lists {row}")
    expect((store / NAME).is_dir(), f"{NAME} is not in {store}")

    answered = folder / "answers.jsonl"
    answered.write_text('{"text": "So \\\\boxed{1/2}", "answer": "0.5"}\n')
    expect("1 right" in reasonmaxxer("grade", answered), "1/2 is not 0.5")

    begun = time.monotonic()
    with reasonmaxxer.serving("--model", model, "--max-model-len", 512) as url:
        print(f"{time.monotonic() - begun:6.1f} s  reasonmaxxer serve, until it is healthy")
        for name in (NAME, f"{NAME}:gated"):
            asked = [{"role": "user", "content": "Calculate 16*4-10-4."}]
            answer = post(
                f"{url}/v1/chat/completions", {"model": name, "messages": asked, "max_tokens": 64}
            )
            text = answer["choices"][0]["message"]["content"]
            expect(bool(text.strip()), f"{name} answers with nothing: {answer}")
            print(f"          {name}: {' '.join(text.split())[-60:]}", flush=True)
        details = answer["usage"].get("completion_tokens_details") or {}
        expect("gated_tokens" in details, f"the gate did not report: {answer['usage']}")
        expect(answers(f"{url}/gate"), "the page is not served")


def write_problems(path: Path, count: int) -> Path:
    """Expressions of the kind that the miniature base knows."""
    chance = random.Random(7)
    lines = []
    for _ in range(count):
        text = str(chance.randint(2, 19))
        for _ in range(3):
            operator = chance.choice("+-*")
            text += operator + str(chance.randint(2, 9 if operator == "*" else 19))
        row = {"problem": f"Calculate {text}.", "answer": str(eval(text))}  # digits and operators
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def expect(holds: bool, otherwise: str) -> None:
    """Raise WheelError with the message `otherwise`, unless it holds."""
    if not holds:
        raise WheelError(otherwise)


def main() -> int:
    """Run the test. Returns the exit code: 0 where everything works, 1 with the reason else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="neither fit nor serve")
    args = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reasonmaxxer-wheel-") as name:
        folder = Path(name)
        try:
            wheel = build(folder)
            check_contents(wheel)
            bare = folder / "without-extras"
            walk_without_extras(Installed(install(wheel, bare), bare))
            if not args.quick:
                installed = Installed(install(wheel, folder, EXTRAS), folder)
                print(f"{time.monotonic() - begun:6.1f} s  since the start", flush=True)
                walk(installed, folder)
        except (WheelError, subprocess.CalledProcessError) as error:
            print(f"wheel test: {error}", file=sys.stderr)
            return 1
    print(f"{time.monotonic() - begun:6.1f} s  in all; the wheel works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
