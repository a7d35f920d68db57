"""`store calibrate`: prompts, the measured table, and the version that it makes."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Refused, make_adapter, with_config, write_rows

from adapters.adapter import CONFIG, ORIGIN, TRAINED_ON, WEIGHTS, read_origin
from adapters.base_checkpoint import BaseCheckpoint
from adapters.calibration import add_gate
from adapters.exchange import import_adapter
from adapters.gate import RATES
from adapters.manifest import Gate, Score
from adapters.store import Store
from reasonmaxxer.cli import main as console
from training.calibrate import CalibrateConfig, Measured, main
from training.generation import Completion
from training.problems.prompts import load_prompts

# ------------------------------------------------------------------------------------ prompts


def test_prompts_of_every_form(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
    answer = {"role": "assistant", "content": "2"}
    file = write_rows(
        tmp_path / "prompts.jsonl",
        {"messages": [system, user, answer, user, answer]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [user]},
        {"problem": "3+3?", "answer": "6"},
        {"question": "4+4?"},
        {"conversations": [{"from": "human", "value": "5+5?"}, {"from": "gpt", "value": "10"}]},
    )
    assert load_prompts(file) == [
        [system, user, answer, user],
        [{"role": "user", "content": "2+2?"}],
        [user],
        [{"role": "user", "content": "3+3?"}],
        [{"role": "user", "content": "4+4?"}],
        [{"role": "user", "content": "5+5?"}],
    ]
    some = load_prompts(file, limit=2, seed=3)
    assert len(some) == 2
    assert some == load_prompts(file, limit=2, seed=3)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"text": "?"}, "line 2: has none of the columns messages, conversations, "),
        ({"messages": "?", "prompt": 3}, None),
        ({"prompt": 3}, "line 2: prompt: must be text or a list"),
        ({"prompt": "  "}, "line 2: prompt: must be text"),
        ({"messages": [{"role": "tool", "content": "?"}]}, "line 2: messages: message 1 .*'tool'"),
        ({"messages": [{"role": "user", "content": [3]}]}, "line 2: messages: message 1 has parts"),
        ({"messages": [{"role": "user"}]}, "line 2: messages: message 1 needs"),
        ({"messages": ["?"]}, "line 2: messages: must be text or a list of messages"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "holds no question"),
    ],
)
def test_rows_that_are_no_prompts_are_named(
    tmp_path: Path, row: dict[str, Any], named: str | None
) -> None:
    file = write_rows(tmp_path / "prompts.jsonl", {"prompt": "?"}, row)
    if named is None:
        assert len(load_prompts(file)) == 2
        return
    with pytest.raises(ValueError, match=named):
        load_prompts(file)


# --------------------------------------------------------------------------------- the measure


def test_the_gate_and_its_standard_error_by_hand() -> None:
    # Two prompts with two answers each.
    answers = [np.array(h, np.float32) for h in ([0, 0, 2], [1], [0, 3], [0, 0, 0, 0])]
    measured = Measured(answers, each=2)
    gate = measured.gate(0.2)
    assert (gate.tau, gate.rate, gate.tokens) == (1.0, 0.2, 10)
    assert [rate for rate, _ in gate.table] == list(RATES)
    assert measured.gate(0.2, tau=0.5).rate == pytest.approx(0.3)
    rate = measured.gate_rate(1.0)
    # 1 of 4 and 1 of 6: residuals 1 - 0.2 * 4 and 1 - 0.2 * 6, over a mean of 5 tokens.
    assert rate.value == pytest.approx(0.2)
    assert rate.stderr == pytest.approx(np.sqrt((0.2**2 + 0.2**2) / 1 / 2) / 5)
    assert rate.n == 2


# --------------------------------------------------------------------------------- the version


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """The store that each test gets a copy of, and beside it the folder `fitted`."""
    folder = tmp_path_factory.mktemp("prepared")
    made = Store(folder / "store")
    make_adapter(made.root, "plain", base_folder, targets=("q_proj", "k_proj"), manifest=False)
    made.publish(make_adapter(folder, "fitted", base_folder, seed=1), "fitted")
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    """`plain` is a PEFT folder without a manifest, `fitted` has one with scores."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "store")


def test_whoever_is_not_root_can_add_a_gate(
    store: Store, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseCheckpoint.open(str(base_folder))
    folder = store.root.parent / "fitted"
    (folder / "README.md").write_text("a card")
    before = store.publish(folder, "fitted")
    write = Path.write_text

    def write_as_user(path: Path, *arguments: Any, **more: Any) -> int:
        if path.exists() and not path.stat().st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "not root", str(path))
        return write(path, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", write_as_user)
    added = add_gate(store, "fitted", Gate(tau=0.3, rate=0.05, tokens=9, table=[(0.05, 0.3)]), base)
    assert added.hash != before.hash


def test_only_scores_of_the_same_gate_are_kept(store: Store, base_folder: Path) -> None:
    base = BaseCheckpoint.open(str(base_folder))
    fitted = store.get("fitted")
    assert fitted.manifest is not None
    scored = fitted.manifest.model_copy(
        update={
            "scores": [
                Score(mode=mode, problems="p", metric="pass@1", value=0.5, n=9, temperature=0.6)
                for mode in ("base", "gated")
            ]
        }
    )
    folder = store.root.parent / "fitted"
    (folder / "manifest.json").write_text(scored.model_dump_json())
    before = store.publish(folder, "fitted")

    def modes(gate: Gate) -> list[str]:
        added = add_gate(store, before.id, gate, base, alias=False)
        assert added.manifest is not None
        return [score.mode for score in added.manifest.scores]

    table = [(0.05, 0.3), (0.1, 0.2)]
    assert modes(Gate(tau=0.3, rate=0.05, tokens=9, table=table)) == ["base", "gated"]
    assert modes(Gate(tau=0.4, rate=0.05, tokens=9, table=table)) == ["base"]
    assert store.resolve("fitted") == store.resolve(before.id)


Run = Callable[..., None]


@pytest.fixture
def calibrated(store: Store, base_folder: Path, tmp_path: Path) -> Run:
    """Run the command on three prompts, with transformers."""
    prompts = write_rows(
        tmp_path / "prompts.jsonl", *({"prompt": f"What is {n}+{n}*2?"} for n in range(3))
    )

    def run(*flags: str, prompts: str = prompts) -> None:
        main(
            [
                *flags[:1], "--store", str(store.root), "--prompts", prompts,
                "--engine", "transformers", "--max-tokens", "24", "--answers", "2", *flags[1:],
            ]
        )  # fmt: skip

    return run


def test_a_plain_adapter_becomes_a_version_with_a_gate(
    store: Store,
    base_folder: Path,
    calibrated: Run,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = store.get("plain")
    with caplog.at_level(logging.WARNING):
        calibrated("plain", "--model", str(base_folder), "--rate", "0.1")
    added = store.get("plain", BaseCheckpoint.open(str(base_folder)))
    assert added.manifest is not None
    assert added.gate is not None
    assert (added.path / WEIGHTS).read_bytes() == (
        store.path(store.resolve(before.id)) / WEIGHTS
    ).read_bytes()
    assert [move.version for move in store.history("plain")] == [before.id, added.id]
    assert 0.05 < added.gate.rate <= 0.1
    assert added.gate.tokens <= 3 * 2 * 24
    assert added.manifest.family == "tiny"
    assert added.manifest.base.fingerprint == BaseCheckpoint.open(str(base_folder)).fingerprint
    assert added.manifest.made_by["calibrated on"] == "prompts.jsonl, 3 prompts"
    card = (added.path / "README.md").read_text()
    assert card.count("## Calibration") == 1
    assert f"Gate: {added.gate}, by" in card
    assert "calibrated on prompts.jsonl, 3 prompts, calibrated at temperature" in card
    said = capsys.readouterr().out.splitlines()
    assert said[0] == added.id
    assert f"tau {added.gate.tau:.4f} nats: gate rate {added.gate.rate:.3f} ±" in said[1]
    assert "are few" in caplog.text
    # The same again is the same version: nothing of it is random, and nothing is a date.
    calibrated("plain", "--model", str(base_folder), "--rate", "0.1")
    assert len(store.versions("plain")) == 2


def test_a_fitted_adapter_keeps_its_rate_and_temperature(store: Store, calibrated: Run) -> None:
    calibrated("fitted", "--tau", "0.25", "--no-alias")
    own = store.get("fitted").gate
    (added,) = set(store.versions("fitted")) - {store.resolve("fitted").hash}
    gate = store.get(f"fitted@{added}").gate
    assert own is not None
    assert gate is not None
    assert (gate.tau, gate.temperature) == (0.25, own.temperature)
    assert gate.table
    assert not own.table
    assert store.resolve("fitted").hash != added


def test_what_tells_where_the_weights_come_from_is_kept(
    store: Store, base_folder: Path, tmp_path: Path
) -> None:
    base = BaseCheckpoint.open(str(base_folder))
    theirs = make_adapter(tmp_path, "theirs", base_folder, manifest=False)
    config = json.loads((theirs / CONFIG).read_text())
    (theirs / CONFIG).write_bytes(b"\xef\xbb\xbf" + json.dumps(config).encode())  # an import's work
    for file in ("fit.yaml", TRAINED_ON):
        (theirs / file).write_bytes(b"# as it was\n")
    before = import_adapter(store, str(theirs), "theirs", base=base)
    gate = Gate(tau=0.3, rate=0.05, tokens=9, table=[(0.05, 0.3)])
    added = add_gate(store, "theirs", gate, base, made_by={"calibrated on": "p"})
    again = add_gate(store, "theirs", gate.model_copy(update={"tau": 0.4}), base)
    assert read_origin(before.path).changes
    for version in (added, again):
        assert version.hash != before.hash
        assert (version.path / ORIGIN).read_bytes() == (before.path / ORIGIN).read_bytes()
        for file in ("fit.yaml", TRAINED_ON):
            assert (version.path / file).read_bytes() == b"# as it was\n"


def test_entropies_that_the_engine_reports_are_taken(base_folder: Path) -> None:
    from training.calibrate import entropies_of

    base = BaseCheckpoint.open(str(base_folder))
    reported = Completion([1, 2], "", "stop", 0, [0.5, 0.25])
    (h,) = entropies_of(base, "auto", [[1]], [[reported]])
    assert h.tolist() == [0.5, 0.25]
    plain = Completion([5, 6, 7], "", "stop")
    scored = entropies_of(base, "auto", [[1, 2]], [[plain, plain._replace(token_ids=[5, 6])]])
    assert [len(h) for h in scored] == [3, 2]
    np.testing.assert_allclose(scored[0][:2], scored[1], atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nobody",), r"name: 'nobody' is not in .* \(there: fitted, plain\)"),
        (("plain",), "model: 'plain' does not say which base it is for"),
        (("plain", "--model", "nowhere"), "model: nowhere"),
        (("plain", "--model", "BASE", "--family", "unknown"), "family: 'unknown' is unknown"),
        (("fitted", "--rate", "1.5"), "--rate: "),
        (("fitted", "--temperature", "0", "--answers", "4"), "--answers: 4 .* --temperature 0"),
        (("fitted", "--prompts", "EMPTY"), "prompts: .* holds none"),
        (("fitted", "--prompts", "no-such-thing.jsonl"), "prompts: "),
        (("fitted", "--model", "SHORT"), "prompts: the longest prompt has .* context of 8"),
    ],
)
def test_bad_input_ends_with_2_and_the_field(
    store: Store,
    base_folder: Path,
    calibrated: Run,
    tmp_path: Path,
    refused: Refused,
    flags: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    short = with_config(tmp_path / "short", max_position_embeddings=8)
    empty = str(tmp_path / "empty.jsonl")
    names = {"BASE": str(base_folder), "EMPTY": empty, "SHORT": short}
    before = store.versions("fitted")
    error = refused(calibrated, *(names.get(flag, flag) for flag in flags)).splitlines()[-1]
    assert re.search(message, error), error
    assert store.versions("fitted") == before


def test_the_console_script_knows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    from adapters.__main__ import main as adapters_main

    monkeypatch.setattr(sys, "argv", ["reasonmaxxer"])
    with pytest.raises(SystemExit) as stop:
        console(["store", "calibrate", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "reasonmaxxer store calibrate" in shown
    assert "--prompts" in shown
    monkeypatch.setattr(sys, "argv", ["adapters"])
    assert "python -m training.calibrate" in refused(adapters_main, ["calibrate", "plain"])


def test_settings_have_the_names_of_other_commands() -> None:
    config = CalibrateConfig.load(["plain", "--prompts", "gsm8k", "--no-alias"])
    assert (config.name, config.prompts, config.alias) == ("plain", "gsm8k", False)
