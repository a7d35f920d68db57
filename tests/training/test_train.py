"""Scoring and training on the shipped miniature base, against slow references."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import TrainingArguments

from adapters.gate import entropy
from adapters.recipe import Checkpoints, Lora, Objective, Optimizer
from demo.server import free_port
from training import processes, sharded_base
from training.contrastive_trainer import (
    CheckpointNote,
    ContrastiveTrainer,
    EveryPositionTrainer,
    RateBar,
    TrainingRow,
    collate,
    order,
    strength,
)
from training.hf_model import batches, best_dtype, load_model
from training.lora_model import load_adapter, peft_model
from training.run_folder import Stage
from training.stages.score import sequence_entropies
from training.stages.train import NOT_TRACKED, train_adapter, training_arguments
from training.trackers import Tracking

BASE = "models/tiny-qwen2"


@pytest.fixture(scope="module")
def model():
    return load_model(BASE)


@pytest.fixture
def rows() -> list[TrainingRow]:
    return make_rows()


def make_rows() -> list[TrainingRow]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        length = int(rng.integers(4, 12))
        decisions = rng.random(length) < 0.4
        decisions[0] = True
        rows.append(
            TrainingRow(
                prompt_ids=rng.integers(3, 300, rng.integers(3, 9)).tolist(),
                token_ids=rng.integers(3, 300, length).tolist(),
                advantages=[1.0 if number % 2 else -1.0] * length,
                decisions=decisions.tolist(),
            )
        )
    return rows


def test_entropies_of_a_padded_batch_equal_those_of_each_rollout_alone(model, rows) -> None:
    prompts = [row["prompt_ids"] for row in rows]
    answers = [row["token_ids"] for row in rows]
    batched = sequence_entropies(model, prompts, answers, chunk=5)
    for prompt, answer, found in zip(prompts, answers, batched, strict=True):
        for t in range(len(answer)):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer[:t]])).logits[0, -1]
            assert found[t] == pytest.approx(entropy(logits).item(), abs=1e-4)


def test_batches_cover_every_row_once_within_the_budget() -> None:
    lengths = [5, 9, 1, 7, 7, 30]
    made = list(batches(lengths, token_budget=16))
    assert sorted(index for batch in made for index in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 16 for b in made)


def test_batches_are_smaller_behind_long_prompts() -> None:
    # With prompts no longer than answers, only the answers count: 4 of 256 in 1024.
    lengths = [256] * 8
    assert [len(b) for b in batches(lengths, 1024)] == [4, 4]
    assert [len(b) for b in batches(lengths, 1024, [60] * 8)] == [4, 4]
    assert [len(b) for b in batches(lengths, 1024, [256] * 8)] == [4, 4]
    assert [len(b) for b in batches(lengths, 1024, [257] * 8)] == [3, 3, 2]
    # 2048 // (5 + 600) = 3 answers of 5 tokens behind prompts of 600.
    assert [len(b) for b in batches([5] * 8, 1024, [600] * 8)] == [3, 3, 2]
    # The longest prompt of a batch counts for all of it, and for no other.
    assert list(batches([5] * 6, 1024, [10, 2000, 10, 10, 10, 10])) == [[0], [1], [2, 3, 4, 5]]


def test_collated_states_are_the_positions_that_predict_the_answer(rows) -> None:
    batch = collate(rows[:3])
    flat = batch["input_ids"].flatten()
    assert torch.equal(flat[batch["states"] + 1], batch["tokens"])
    assert batch["rollout"].tolist() == [n for n in range(3) for _ in rows[n]["token_ids"]]


def test_strength_is_the_papers_order() -> None:
    row = TrainingRow(
        prompt_ids=[1],
        token_ids=[1] * 10,
        advantages=[-2.0] * 10,
        decisions=[True] * 3 + [False] * 7,
    )
    assert strength(row) == pytest.approx(0.6)


LORA = Lora(rank=2, alpha=4, target_modules=["q_proj", "o_proj"])
BOTH = pytest.mark.parametrize("positions", ["decisions", "all"])


def run_training(
    folder: Path,
    rows,
    positions="decisions",
    start=None,
    on_checkpoint=None,
    kept=None,
    tracking=NOT_TRACKED,
    budget=None,
    base=BASE,
    mean="rollout",
    **changes,
):
    optimizer = Optimizer(**{
        "learning_rate": 1e-2, "warmup_steps": 2, "epochs": 2.0, "batch_size": 2,
        "accumulation": 2, **changes,
    })  # fmt: skip
    return train_adapter(
        Stage.first(folder, "training", {}),
        partial(load_model, base),
        rows,
        lora=LORA,
        objective=Objective(positions=positions, mean=mean, kl_positions=None),
        optimizer=optimizer,
        checkpoints=Checkpoints(every=0.5),
        seed=0,
        budget=budget,
        kept=kept,
        start=start,
        on_checkpoint=on_checkpoint,
        tracking=tracking,
    )


@pytest.fixture(scope="session")
def train():
    """The training stage, with real steps; a test that asks for it bears the marker `engine`."""
    return run_training


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "adapter_model.safetensors").read_bytes()


@BOTH
@pytest.mark.parametrize("mean", ["rollout", "token"])
def test_training_is_reproducible_and_accumulation_is_a_larger_batch(
    train, tmp_path, rows, positions, mean
) -> None:
    first = train(tmp_path / "a", rows, positions, mean=mean)
    assert [path.name for path in first] == [f"checkpoint-{n}" for n in (2, 4, 6)]
    if mean == "rollout":
        assert weights(first[-1]) == weights(train(tmp_path / "b", rows, positions)[-1])
    larger = {"batch_size": 4, "accumulation": 1, "mean": mean}
    whole = load(weights(train(tmp_path / "c", rows, positions, **larger)[-1]))
    for name, tensor in load(weights(first[-1])).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob("*/training-*-base-cache"))  # given back


def test_a_later_training_reads_the_kept_caches(train, tmp_path, rows, monkeypatch) -> None:
    kept = tmp_path / "kept"
    first = train(tmp_path / "a", rows, kept=kept)
    monkeypatch.setattr(
        "training.base_cache.compute_caches", lambda *_: pytest.fail("the base ran again")
    )
    later = train(tmp_path / "b", rows, kept=kept)
    assert weights(first[-1]) == weights(later[-1])
    other = train(tmp_path / "c", rows, kept=kept, learning_rate=1e-3)
    assert weights(first[-1]) != weights(other[-1])


def test_always_on_batches_are_of_like_length(train, tmp_path) -> None:
    # Rollouts of four lengths, shuffled.
    many = []
    for number in range(48):
        length = 2 + 4 * (number % 4)
        many.append(
            TrainingRow(
                prompt_ids=[5, 6, 7],
                token_ids=[8] * length,
                advantages=[1.0] * length,
                decisions=[True] * length,
            )
        )
    seen = []
    stock = EveryPositionTrainer.collate

    def collate_and_look(self, indices):
        seen.append({len(self.rows[index]["token_ids"]) for index in indices})
        return stock(self, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EveryPositionTrainer, "collate", collate_and_look)
        changes = {"batch_size": 3, "accumulation": 1, "epochs": 1.0, "order": "shuffled"}
        train(tmp_path, many, "all", **changes)
    assert len(seen) == 16 and all(len(lengths) <= 2 for lengths in seen)


def test_the_bar_shows_tokens_per_second_and_the_last_estimate() -> None:
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=1)
    bar = RateBar()
    bar.on_train_begin(None, state, None)
    bar.tokens, bar.text = 1200, "held-out 0.5"
    bar.on_step_end(None, state, None)
    shown = bar.training_bar.postfix
    assert shown.endswith(" tok/s, held-out 0.5")
    assert int(shown.split()[0].replace(",", "")) > 0
    bar.on_train_end(None, state, None)


@pytest.mark.parametrize(
    ("stored", "hidden", "has_instructions", "wanted"),
    [
        (torch.bfloat16, 896, True, "bfloat16"),
        (torch.bfloat16, 896, False, "float32"),
        (torch.float32, 896, True, "float32"),
        (torch.bfloat16, 128, True, "float32"),  # a miniature
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(
    monkeypatch, stored, hidden: int, has_instructions: bool, wanted: str
) -> None:
    from transformers import Qwen2Config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = {"avx512_bf16": has_instructions}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert best_dtype(Qwen2Config(hidden_size=hidden, dtype=stored)) == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_dtype(Qwen2Config(hidden_size=hidden, dtype=stored)) == "bfloat16"


def lora_of(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n}


def test_every_checkpoint_is_told_of_while_the_model_has_it_on(train, tmp_path, rows) -> None:
    told = []

    def on_checkpoint(model, folder: Path) -> CheckpointNote:
        told.append((folder.name, lora_of(model)))
        return CheckpointNote("noted")

    made = train(tmp_path, rows, on_checkpoint=on_checkpoint)
    assert [name for name, _ in told] == [path.name for path in made]
    model = peft_model(load_model(BASE), LORA, 1)
    for path, (_, then) in zip(made, told, strict=True):
        load_adapter(model, path)
        now = lora_of(model)
        assert all(torch.equal(now[name], value) for name, value in then.items())


def test_a_later_round_goes_on_from_the_adapter_that_sampled(train, tmp_path, rows) -> None:
    first = train(tmp_path / "first", rows)[-1]
    # Without a step to speak of it stays where it began.
    still = train(tmp_path / "still", rows, start=first, learning_rate=1e-12)[-1]
    for name, tensor in load(weights(first)).items():
        torch.testing.assert_close(load(weights(still))[name], tensor)
    # The ratio is to that adapter, so it is 1 at first: the loss is the mean advantage.
    log = json.loads((still.parent / "log.json").read_text())
    first_batch = [rows[index]["advantages"][0] for index in order(rows, True)[:4]]
    assert log[0]["loss"] == pytest.approx(-np.mean(first_batch), abs=1e-3)
    against_base = train(tmp_path / "base", rows, learning_rate=1e-12)[-1]
    assert weights(against_base) != weights(still)


class Killed(BaseException):
    pass


@BOTH
@pytest.mark.parametrize(("order", "step"), [("strongest", 4), ("shuffled", 6)])
def test_training_goes_on_from_its_last_whole_checkpoint(
    train, tmp_path, rows, monkeypatch, positions, order, step
) -> None:
    """In the first epoch, or in the second, whose order is its own."""
    reference = train(tmp_path / "reference", rows, positions, order=order)
    save = ContrastiveTrainer._save_checkpoint

    def dies(self, *args, **kwargs):
        if self.state.global_step == step:  # half-written: the weights are there, the rest is not
            self.save_model(str(tmp_path / "a" / "half"), _internal_call=True)
            raise Killed
        save(self, *args, **kwargs)

    monkeypatch.setattr(ContrastiveTrainer, "_save_checkpoint", dies)
    with pytest.raises(Killed):
        train(tmp_path / "a", rows, positions, order=order)
    monkeypatch.undo()
    first = next((tmp_path / "a").glob("training-*/checkpoint-2"))
    before = first.stat().st_mtime_ns
    resumed = train(tmp_path / "a", rows, positions, order=order)
    assert first.stat().st_mtime_ns == before  # not redone
    assert [weights(path) for path in resumed] == [weights(path) for path in reference]


def test_a_training_that_was_killed_behind_its_last_step_is_done(train, tmp_path, rows) -> None:
    whole = train(tmp_path, rows, epochs=1.67)  # five steps, in the middle of an epoch
    log = whole[0].parent / "log.json"
    losses = [one["loss"] for one in json.loads(log.read_text()) if "loss" in one]
    for made_last in (log, log.with_name("complete")):
        made_last.unlink()
    assert train(tmp_path, rows, epochs=1.67) == whole
    assert [one["loss"] for one in json.loads(log.read_text()) if "loss" in one] == losses


@pytest.mark.parametrize(
    ("rollouts", "every", "apart", "steps"),
    [
        (160, 0.1, 1, 4),  # of 40 steps an epoch
        (160, 0.1, 6, 6),
        (20, 0.1, 1, 1),  # of 5, every half one
        (20, 0.1, 3, 3),
        (20, 0.1, 9, 5),  # the training has no more
    ],
)
def test_checkpoints_are_a_share_of_an_epoch_and_some_steps_apart(
    tmp_path: Path, rollouts: int, every: float, apart: int, steps: int
) -> None:
    optimizer = Optimizer(batch_size=4, accumulation=1, epochs=1)
    made = training_arguments(
        tmp_path, rollouts, optimizer, Checkpoints(every=every, apart=apart), 0
    )
    assert made.save_steps == steps


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path, monkeypatch) -> None:
    begin = TrainingArguments.__post_init__

    def begin_with_four(self):
        begin(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", begin_with_four)
    made = training_arguments(tmp_path, 8, Optimizer(batch_size=2), Checkpoints(), 0)
    assert (made.n_gpu, made.train_batch_size) == (1, 2)


def test_the_base_is_the_model_with_its_adapter_off(model, rows) -> None:
    wrapped = peft_model(load_model(BASE), Lora(rank=2), seed=0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.tensor([rows[0]["prompt_ids"]])
    with torch.inference_mode():
        base = model(ids).logits
        assert not torch.equal(wrapped(ids).logits, base)
        with wrapped.disable_adapter():
            assert torch.equal(wrapped(ids).logits, base)


def test_a_tracked_training_is_seen_in_tensorboard_and_is_the_same(train, tmp_path, rows) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = Tracking(["tensorboard"], "my-adapter", {"gate_tau": 0.5, "rollouts_trained_on": 6})

    def on_checkpoint(_model, folder: Path) -> CheckpointNote:
        return CheckpointNote("", {"eval_gain": int(folder.name.split("-")[1]) / 100})

    tracked = train(tmp_path / "a", rows, tracking=tracking, on_checkpoint=on_checkpoint)
    (events,) = (tmp_path / "a").rglob("events.out.tfevents.*")
    seen = accumulators.EventAccumulator(str(events)).Reload()
    scalars = set(seen.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/gain"} <= scalars
    assert [(one.step, one.value) for one in seen.Scalars("train/gate_tau")] == [(0, 0.5)]
    gains = [(one.step, round(one.value, 4)) for one in seen.Scalars("eval/gain")]
    assert gains == [(2, 0.02), (4, 0.04), (6, 0.06)]
    assert "my-adapter" in seen.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    untracked = train(tmp_path / "b", rows)
    assert weights(tracked[-1]) == weights(untracked[-1])
    assert not list((tmp_path / "b").rglob("events.*"))


# ------------------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple[list[Path], list[float]]]:
    """By positions, what one process trains: the checkpoints, and a figure of each."""
    import train_together

    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for positions in ("decisions", "all"):
        logits: list[float] = []

        def estimate(model, _: Path, to=logits) -> CheckpointNote:
            to.append(train_together.logit_of(model))
            return CheckpointNote("")

        checkpoints = run_training(
            folder / positions, make_rows(), positions, on_checkpoint=estimate
        )
        found[positions] = checkpoints, logits
    return found


def untie(model):
    """The same model with a head of its own, which is sharded apart from the embeddings."""
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.mark.engine
@pytest.mark.parametrize("flag", ["--multi_gpu", "--use_fsdp"])
def test_two_processes_train_the_adapter_of_one(tmp_path, rows, model, alone, flag) -> None:
    """Launched as docs/real-models-gpu.md says, over gloo; each batch is shared by the two."""
    import train_together

    (tmp_path / "rows.json").write_text(json.dumps(rows))
    untie(load_model(BASE)).save_pretrained(tmp_path / "untied")
    flags = f"{flag} --num_processes 2 --num_machines 1 --mixed_precision no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags.split()]
    done = subprocess.run(
        [*command, "--main_process_port", str(free_port()), train_together.__file__, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("helped") == 1
    told = json.loads((tmp_path / "told.json").read_text())
    share = told["bytes"] / train_together.local_bytes(model)
    assert share == pytest.approx(0.5, abs=0.05) if flag == "--use_fsdp" else share == 1
    assert told["entropy"] == pytest.approx(train_together.entropy_alone(model), abs=1e-4)
    for positions, (checkpoints, logits) in alone.items():
        assert told[positions] == pytest.approx(logits, rel=1e-3, abs=1e-3)
        whole = sorted((tmp_path / positions).glob("training-*/checkpoint-*/whole"))
        assert [path.parent.name for path in whole] == [path.name for path in checkpoints]
        found = load(weights(whole[-1].parent))
        for name, tensor in load(weights(checkpoints[-1])).items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_base_without_known_layers_is_not_sharded(monkeypatch) -> None:
    whole = load_model(BASE)
    monkeypatch.setattr(whole, "_no_split_modules", [])
    with pytest.raises(ValueError, match="launch without --use_fsdp"):
        sharded_base.shard(whole)


def test_processes_are_sharded_only_where_several_were_launched(monkeypatch) -> None:
    monkeypatch.setenv(processes.FSDP, "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes.join()
    assert not processes.sharded()
    assert processes.FSDP not in os.environ  # accelerate must not see it
    with sharded_base.lent(lambda: "the base") as lent:
        assert lent == "the base"


def test_a_batch_that_processes_cannot_share_is_named(monkeypatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 4)
    assert processes.share(2, 8) == (2, 2)
    assert processes.share(8, 1) == (2, 1)
    with pytest.raises(ValueError, match="multiple of the 4 processes"):
        processes.share(2, 2)
