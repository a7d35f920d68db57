"""Helpers: adapters with random weights, a real server, greedy decoding by Hugging Face; and what
tests of commands need: files of rows and problems, refusals, Python in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from adapters.adapter import CONFIG, WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import sha256_file
from adapters.manifest import Base, Gate, Manifest, Mode
from adapters.store import Store
from demo.server import free_port

if TYPE_CHECKING:
    from training.evaluation import Result

ROOT = Path(__file__).parents[1]
KEY = "test-key"
ADMIN_KEY = "test-admin-key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
START_SECONDS = 240
# One thread: the miniature gains nothing from two, and two that wait for each other on a busy
# machine are ten times slower.
ENGINE_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
T = TypeVar("T")
Refused = Callable[..., str]  # the fixture `refused`: a command and its arguments -> its error


def run_command(
    *command: object, check: bool = False, cwd: Path = ROOT, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it writes; `more` is for `subprocess.run`."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=check, **more)


def python(*arguments: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, as `run_command` does."""
    return run_command(sys.executable, *arguments, check=check, **more)


def write_rows(path: Path, *rows: object) -> str:
    """Write `rows` as JSONL; returns the path, as a command takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_puzzles(path: Path, count: int, seed: int, split: Literal["train", "heldout"]) -> Path:
    """Write the first problems of a stream of the miniature world, as JSONL."""
    from research.miniature.world import puzzles

    found = (puzzle.problem for puzzle in islice(puzzles(seed, split), count))
    path.write_text("".join(problem.model_dump_json() + "\n" for problem in found))
    return path


def with_config(folder: Path, **values: object) -> str:
    """Copy the miniature base to `folder`, with other values in its configuration."""
    shutil.copytree(ROOT / "models" / "tiny-qwen2", folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(folder)


def findings(script: Path, case: Any = None, **settings: str) -> Any:
    """What a script finds in a process with vLLM and without its plugins.

    It reads `case` from stdin as JSON, and writes its findings as the last line of stdout.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    stock = {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | ENGINE_ENVIRONMENT | {"PYTHONPATH": path} | stock | settings
    ended = python(script, check=False, input=json.dumps(case), env=environment)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


def until(true: Callable[[], T]) -> T:
    """Wait for what a server does by itself; returns what was true at last."""
    deadline = time.monotonic() + 60
    while not (found := true()):
        assert time.monotonic() < deadline
    return found


def make_adapter(
    store: Path,
    name: str,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    targets: tuple[str, ...] = ("q_proj", "o_proj"),
    manifest: bool = True,
    config: dict[str, Any] | None = None,
) -> Path:
    """A PEFT adapter with random weights in `store`; `config` makes it one for another shape."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    shape = AutoConfig.from_pretrained(base, **(config or {}))
    model = get_peft_model(
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32),
        LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=list(targets), init_lora_weights=False
        ),
    )
    folder = store / name
    model.save_pretrained(str(folder))
    if manifest:
        sign(folder, base)
    return folder


def configured(folder: Path, **changes: Any) -> None:
    """Change keys of adapter_config.json; Ellipsis takes one away."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))


def flip_bit(path: Path) -> None:
    """Change the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def made_up_result(correct: Any, label: str = "x", mode: Mode = "gated", **more: Any) -> Result:
    """An evaluation with `correct` [problems, samples]; answers of 7 tokens, boxed and whole."""
    import numpy as np

    from training.evaluation import Result

    zeros = np.zeros_like(correct, dtype=np.int64)
    answers = {"boxed": zeros == 0, "tokens": zeros + 7, "gated": zeros, "truncated": zeros > 0}
    ids = [str(number) for number in range(len(correct))]
    return Result(label, mode, "made up", 0.6, ids, correct, **(answers | more))


def adapter_folder(store: Path, name: str) -> Path:
    """Where an adapter's files lie: a plain folder, or the version that a server made of it."""
    return Store(store).path(Store(store).resolve(name))


GATE = Gate(tau=0.3, rate=0.05, tokens=1000)  # of adapters whose threshold does not matter


def sign(folder: Path, base: Path, fingerprint: str | None = None, gate: Gate = GATE) -> None:
    """Write the manifest of an adapter folder."""
    opened = BaseCheckpoint.open(str(base))
    manifest = Manifest(
        name=folder.name,
        family="tiny",
        base=Base(
            model=opened.name,
            architecture=opened.architecture,
            fingerprint=fingerprint or opened.fingerprint,
        ),
        gate=gate,
        files={file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


@dataclass
class Server:
    """A running `python -m serving`."""

    url: str
    store: Path
    base: Path
    process: subprocess.Popen[bytes]
    log_file: Path
    key: str = KEY

    @property
    def log(self) -> str:
        """All it has written so far."""
        return self.log_file.read_text(errors="replace")

    def client(self, key: str | None = None, **kwargs: Any) -> Any:
        """An `openai` client of it."""
        import openai

        kwargs = {"max_retries": 0, "timeout": 120} | kwargs
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, **kwargs)

    def page(self, path: str = "/metrics") -> str:
        """What it says at `path`, without a key."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def wait_until_healthy(self) -> None:
        """Poll /health until it answers, the process ends, or the deadline passes."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TimeoutError(f"no healthy server after {START_SECONDS} s:\n{self.log}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the leader of a session to end; after a minute, end all of the session."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class StartServer(Protocol):
    """How to start a server: `running_server`."""

    def __call__(
        self, base: Path, store: Path, work: Path, *flags: str, port: int | None = None
    ) -> AbstractContextManager[Server]:
        """Base, store, a folder for the log, flags; the port, where it matters."""


@contextmanager
def running_server(
    base: Path, store: Path, work: Path, *flags: str, port: int | None = None
) -> Iterator[Server]:
    """Start `python -m serving`, wait until it is healthy, and end it afterwards."""
    port = port or free_port()
    environment = os.environ | ENGINE_ENVIRONMENT | {"REASONMAXXER_API_KEY": KEY}
    environment["REASONMAXXER_ADMIN_KEY"] = ADMIN_KEY
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # vLLM without bytecode: 10 s more a process
    command = [
        *("-m", "serving", "--model", str(base), "--adapters", str(store)),
        *("--port", str(port), "--dtype", "float32", "--max-num-seqs", "32"),
        *("--max-model-len", "512", "--kv-cache-memory-bytes", str(2**27), *flags),
    ]
    with started(command, environment, port, store, base, work / f"server-{port}.log") as server:
        yield server


@contextmanager
def started(
    arguments: list[str],
    environment: dict[str, str],
    port: int,
    store: Path,
    base: Path,
    log_file: Path,
) -> Iterator[Server]:
    """Start Python with `arguments`, wait until the server at `port` is healthy, end it at last."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", store, base, process, log_file)
    try:
        server.wait_until_healthy()
        yield server
    except BaseException:
        print(f"exit code of the server: {process.poll()}; the end of its log:")
        print("\n".join(server.log.splitlines()[-60:]))
        raise
    finally:
        end(process)


@dataclass
class Reference:
    """Greedy decoding in float32 by Hugging Face and PEFT, the judge of the engine's output."""

    base: Path
    store: Path
    models: dict[str | None, Any] = field(default_factory=dict)  # those that were asked for

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.base)

    def _model(self, adapter: str | None) -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()
        return (
            PeftModel.from_pretrained(model, adapter_folder(self.store, adapter))
            if adapter
            else model
        )

    def greedy(self, adapter: str | None, prompt: str, tokens: int) -> list[int]:
        """Token ids after `prompt`, cut before the first near tie (the two best within 1e-3)."""
        import torch

        if adapter not in self.models:
            self.models[adapter] = self._model(adapter)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        output: list[int] = []
        cache = None
        with torch.no_grad():
            for _ in range(tokens):
                step = self.models[adapter](
                    torch.tensor([ids]), past_key_values=cache, use_cache=True
                )
                best = step.logits[0, -1].topk(2)
                if best.values[0] - best.values[1] < 1e-3:
                    break
                output.append(int(best.indices[0]))
                ids, cache = output[-1:], step.past_key_values
        return output
