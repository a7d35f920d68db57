"""The miniature world: split, answers, authors, tokenizer, shipped base, a run that is killed."""

import json
import os
import re
import signal
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, Refused, python
from transformers import PreTrainedTokenizerFast

from adapters.prompt import PromptRenderer
from adapters.recipe import Prompt
from research.miniature import corpus as corpus_module
from research.miniature.benchmarks import BENCHMARKS, benchmark_problems
from research.miniature.corpus import CorpusConfig, documents, read_corpus, write_corpus
from research.miniature.data import batches, encode
from research.miniature.kinds import KINDS
from research.miniature.kinds.numbers import LIMIT, apply
from research.miniature.measure import boxed, table
from research.miniature.tokenizer import END, PAD, START, train_tokenizer
from research.miniature.world import (
    CAREFUL,
    CARELESS,
    Author,
    Problem,
    Puzzle,
    Split,
    puzzles,
    write_solution,
)

SHIPPED = ROOT / "models" / "tiny-qwen2"


DRAWN: dict[tuple[int, str], tuple[list[Puzzle], Iterator[Puzzle]]] = {}


def some(count: int, seed: int = 0, split: Split = "train", **more: Any) -> list[Puzzle]:
    """The first `count` of a stream; the same ones are drawn once for all tests."""
    if more:
        return list(islice(puzzles(seed, split, **more), count))
    found, stream = DRAWN.setdefault((seed, split), ([], puzzles(seed, split)))
    found.extend(islice(stream, max(0, count - len(found))))
    return found[:count]


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return list(documents(CorpusConfig(documents=2000)))


# --- problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_shipped_problems_are_the_first_of_seed_0(split: Literal["train", "heldout"]) -> None:
    path = ROOT / "models" / "tiny-problems" / f"{split}.jsonl"
    made = [puzzle.problem for puzzle in some(1000, 0, split)]
    assert path.read_text() == "".join(one.model_dump_json() + "\n" for one in made)


def test_split_is_disjoint_whatever_the_seed() -> None:
    def content(split: Split) -> set[tuple[str, str]]:
        return {
            (p.problem.kind, p.kind.canonical(p.state))
            for seed in range(5)
            for p in some(400, seed, split)
        }

    train, heldout = content("train"), content("heldout")
    assert len(train) > 1900 and len(heldout) > 1900
    assert not train & heldout


def test_corpus_has_train_problems_only(corpus: list[dict[str, Any]]) -> None:
    heldout = {p.problem.problem for seed in range(5) for p in some(400, seed, "heldout")}
    assert len(corpus) == 2000
    assert not heldout & {row["problem"] for row in corpus}


def test_benchmarks_are_held_out_and_the_hard_ones_longer_than_the_corpus(
    corpus: list[dict[str, Any]],
) -> None:
    trained_on = {row["problem"] for row in corpus}
    total = 0
    for name, benchmark in BENCHMARKS.items():
        asked = benchmark_problems(name)
        assert asked == benchmark_problems(name)
        assert {problem.split for problem in asked} == {"heldout"}
        assert not trained_on & {problem.problem for problem in asked}
        assert len({problem.id for problem in asked}) == len(asked) == benchmark.problems
        total += len(asked)
    assert total >= 500
    seen = some(200, kinds=["increasing"])
    longest = max(len(puzzle.state.remaining) for puzzle in seen)
    hard = [p for p in benchmark_problems("longest") if p.kind == "increasing"]
    assert min(len(re.findall(r"\d+", problem.problem)) for problem in hard) > longest


def test_a_kind_is_named_with_its_length() -> None:
    assert all(len(p.state.steps) == 5 for p in some(20, kinds=["undo:5"]))
    assert {len(p.state.steps) for p in some(40, kinds=["undo"])} == {3, 4}  # not changed by it
    for name in ("undo:", "undo:1", "undo:12", "poetry:3", ":3"):
        with pytest.raises(ValueError, match="--kind"):
            some(1, kinds=[name])
    with pytest.raises(ValueError, match="--benchmark"):
        benchmark_problems("hardest")


def test_problems_are_deterministic_and_distinct() -> None:
    first, again, other = some(300), list(islice(puzzles(0, "train"), 300)), some(300, seed=1)
    assert [p.problem for p in first] == [p.problem for p in again]
    assert [p.problem for p in first] != [p.problem for p in other]
    assert [p.problem for p in first[:100]] == [p.problem for p in some(100)]  # a prefix
    assert len({p.problem.id for p in first}) == 300
    kinds = [p.problem.kind for p in first]
    assert all(kinds.count(name) == 300 // len(KINDS) for name in KINDS)


def independent_answer(problem: Problem) -> int:
    """From the text alone, with Python's own arithmetic."""
    text = problem.problem
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if problem.kind == "expression":
        return int(eval(re.findall(r"[-+*\d]{3,}", text)[0]))
    if problem.kind == "increasing":
        return sum(n if i % 2 == 0 else -n for i, n in enumerate(sorted(numbers)))
    if problem.kind == "leftward":
        operators = re.findall(r"[-+*]", text)
        value = numbers[-1]
        for operator, number in zip(operators[::-1], numbers[-2::-1], strict=True):
            value = {"+": number + value, "-": number - value, "*": number * value}[operator]
        return value
    # undo: try every number and simulate forwards
    steps = re.findall(r"(add|subtract|multiply by|divide by) (\d+)", text)
    wanted = int(re.findall(r"get (-?\d+)", text)[0])

    def forwards(value: int) -> float:
        result: float = value
        for verb, operand in steps:
            n = int(operand)
            result = {
                "add": result + n,
                "subtract": result - n,
                "multiply by": result * n,
                "divide by": result / n,
            }[verb]
        return result

    found = [value for value in range(-LIMIT, LIMIT + 1) if abs(forwards(value) - wanted) < 1e-9]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_agree_with_independent_arithmetic(split: str) -> None:
    for puzzle in some(400, seed=7, split=split):
        assert int(puzzle.problem.answer) == independent_answer(puzzle.problem), puzzle.problem


# --- authors --------------------------------------------------------------------------------------


def test_perfect_author_always_gets_the_answer_and_a_careless_one_does_not() -> None:
    rng = Random(0)
    puzzles_ = some(400)
    assert all(boxed(write_solution(p, Author(1.0), rng)) == p.problem.answer for p in puzzles_)
    for name in KINDS:
        of_kind = [p for p in puzzles_ if p.problem.kind == name]
        lucky = sum(boxed(write_solution(p, Author(0.0), rng)) == p.problem.answer for p in of_kind)
        assert 0 < lucky / len(of_kind) < 0.45


def test_an_author_in_a_hurry_takes_what_reads_first() -> None:
    for puzzle in some(100):
        first = puzzle.kind.admissible(puzzle.state)[0]
        line = write_solution(puzzle, Author(0.0, hurry=1.0), Random(0)).splitlines()[0]
        assert line.split(" ", 1)[1] == first.text
        careful = write_solution(puzzle, Author(1.0, hurry=1.0), Random(0))
        assert boxed(careful) == puzzle.problem.answer


def test_where_voices_tell_the_careful_words_are_those_of_the_highest_habit() -> None:
    config = CorpusConfig(habits={"undo": [0.0, 1.0]}, voices=True)
    rng = Random(0)
    authors = [config.author("undo", rng) for _ in range(400)]
    pairs = [(one.habit, one.voice) for one in authors]
    assert all(pair in ((0.0, CARELESS), (1.0, CAREFUL)) for pair in pairs)
    assert 150 < sum(habit for habit, _ in pairs) < 250
    puzzle = some(1)[0]
    careful, careless = (
        sum(
            write_solution(puzzle, Author(0.5, voice=voice), rng).startswith("Start")
            for _ in range(400)
        )
        for voice in (CAREFUL, CARELESS)
    )
    assert careful > 330
    assert careless < 70


def test_every_operation_written_is_true_and_in_range() -> None:
    rng = Random(1)
    for puzzle in some(400, seed=2):
        text = write_solution(puzzle, Author(0.3), rng)
        equations = re.findall(r"(-?\d+)([-+*/])(\d+)=(-?\d+)", text)
        assert equations
        for left, operator, right, result in equations:
            assert apply(int(left), operator, int(right)) == int(result)
        assert all(abs(int(n)) <= LIMIT for n in re.findall(r"-?\d+", text))


def test_every_puzzle_leaves_a_choice() -> None:
    for puzzle in some(200, seed=3):
        luck = puzzle.kind.luck(puzzle.state, int(puzzle.problem.answer))
        assert 0 < luck <= puzzle.kind.max_luck


@pytest.mark.parametrize(
    ("left", "operator", "right", "result"),
    [
        (7, "*", 11, 77),
        (-68, "+", 12, -56),
        (-84, "/", 4, -21),
        (85, "/", 4, None),
        (90, "+", 10, None),
        (11, "*", 11, None),
        (4, "*", 21, None),
    ],
)
def test_arithmetic_and_its_range(left: int, operator: str, right: int, result: int | None) -> None:
    assert apply(left, operator, right) == result


# --- tokenizer ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHIPPED)


def test_every_loader_gives_the_same_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    rows = list(documents(CorpusConfig(documents=100)))
    trained = train_tokenizer([row["problem"] for row in rows], 300, 2048)
    for text in ("The answer is \\boxed{-4}.\n", "  don't  \r\n\n--x", "\u00e9 \u4f60 \U0001f600"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == file.encode(text, add_special_tokens=False).ids
    # What is trained with is what AutoTokenizer will load: transformers does not replace it.
    assert type(trained) is type(tokenizer)


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Up to Unicode's normal form, as with every Qwen2 tokenizer.
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_digits_and_symbols_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "9-11*7+12=(48/60){}:,.?"
    tokens = tokenizer.tokenize(text)
    assert tokens == list(text)
    assert tokenizer.is_fast
    assert 320 <= len(tokenizer) <= 384


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    ids = tokenizer(START + END + PAD, add_special_tokens=False)["input_ids"]
    assert len(ids) == 3


def test_chat_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    render = tokenizer.apply_chat_template
    assert render(messages, tokenize=False) == turns
    assert render(messages, tokenize=False, add_generation_prompt=True) == (
        turns + "<|im_start|>assistant\n"
    )
    assert render(messages[1:2], tokenize=False).startswith("<|im_start|>user\n")


def test_served_prompt_equals_training_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = list(documents(CorpusConfig(documents=200, seed=5)))
    for row, document in zip(rows, encode(tokenizer, rows), strict=True):
        served = PromptRenderer.of(tokenizer, Prompt()).token_ids(row["problem"])
        assert document.ids[: document.prompt] == served
        # The whole conversation, rendered at once, is the training document and a line break.
        conversation = [
            {"role": "user", "content": row["problem"]},
            {"role": "assistant", "content": row["solution"]},
        ]
        whole = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert ids == document.ids + tokenizer("\n", add_special_tokens=False)["input_ids"]
        assert document.ids[-1] == tokenizer.eos_token_id


def test_batches_hold_every_document_once_with_labels_on_solutions() -> None:
    rows = list(documents(CorpusConfig(documents=300)))
    small = train_tokenizer([row["solution"] for row in rows], 300, 2048)
    encoded = encode(small, rows)
    made = batches(encoded, 16, small.pad_token_id, seed=0)  # type: ignore[arg-type]
    seen = []
    for batch in made:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            real = ids[ids != small.pad_token_id].tolist()
            seen.append(real)
            learned = labels[labels != -100].tolist()
            assert learned == real[len(real) - len(learned) :]
            assert small.decode(learned).startswith(("First", "Start"))
    assert sorted(seen) == sorted(document.ids for document in encoded)


# --- the shipped base -----------------------------------------------------------------------------


def test_shipped_base_is_small_bf16_and_solves_a_problem(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    weights = SHIPPED / "model.safetensors"
    assert weights.stat().st_size < 2_500_000
    with safe_open(weights, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] and config["max_position_embeddings"] >= 2048
    generation = json.loads((SHIPPED / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert not {"temperature", "top_p", "top_k", "do_sample"} & set(generation)

    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    assert model.dtype == torch.bfloat16
    prompt = PromptRenderer.of(tokenizer, Prompt()).token_ids("What is 3+4-2-1?")
    output = model.generate(torch.tensor([prompt]), max_new_tokens=120, do_sample=False)
    assert boxed(tokenizer.decode(output[0, len(prompt) :])) == "4"


def test_card_says_what_it_is() -> None:
    card = (SHIPPED / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert "miniature" in card and "| all |" in card
    assert "python -m research.miniature pretrain" in card


# --- commands -------------------------------------------------------------------------------------


def test_problems_command_writes_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from research.miniature.__main__ import main

    out = tmp_path / "problems.jsonl"
    flags = ["--seed", "3", "--count", "40", "--split", "heldout"]
    done = python("-m", "research.miniature", "problems", *flags, "--out", out, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 40
    assert {"id", "problem", "answer", "kind"} <= set(lines[0])
    assert {line["split"] for line in lines} == {"heldout"}
    main(["problems", *flags])
    assert capsys.readouterr().out == out.read_text()
    main(["problems", "--count", "5", "--kind", "undo"])
    said = capsys.readouterr().out.splitlines()
    assert {json.loads(line)["kind"] for line in said} == {"undo"}


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["problems", "--count", "0"], "--count"),
        (["problems", "--count", "many"], "--count"),
        (["problems", "--split", "test"], "--split"),
        (["problems", "--kind", "poetry"], "--kind"),
        (["problems", "--benchmark", "poetry"], "--benchmark"),
        (["problems", "--seed", "x"], "--seed"),
        (["problems", "--colour", "red"], "--colour"),
        (["pretrain", "--base", "gpt9"], "--base"),
        (["pretrain", "--optimizer.learning-rate", "-1"], "--optimizer.learning-rate"),
        (["paint"], "command"),
        ([], "command"),
    ],
)
def test_bad_arguments_end_with_2_and_name_the_field(
    argv: list[str], field: str, refused: Refused
) -> None:
    from research.miniature.__main__ import main

    assert field in refused(main, argv)


# --- pre-training ---------------------------------------------------------------------------------

SMALL = {
    "init": None,  # from nothing, not from the weights that the shipped base goes on from
    "architecture": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "vocabulary": 300,
    "corpus": {"documents": 80},
    "optimizer": {"documents_per_batch": 4, "warmup_steps": 2},
    "save_every": 8,
    "measure_problems": 8,
}

# Like kill -9 from outside, but always after the same step.
KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from research.miniature.config import PretrainConfig
from research.miniature.pretrain import train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

train(PretrainConfig.load(sys.argv[1:]), [Kill()])
"""


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_a_grown_model_computes_what_the_smaller_one_does(family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from research.miniature.config import PretrainConfig
    from research.miniature.pretrain import new_model

    config = PretrainConfig.load(["--base", f"{family}-large"])
    assert config.init is not None
    folder = ROOT / config.init
    config = config.model_copy(update={"init": folder})
    small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    large = new_model(config, AutoTokenizer.from_pretrained(folder))
    assert large.config.num_hidden_layers == 2 * small.config.num_hidden_layers
    ids = torch.randint(3, small.config.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_cannot_grow_into_a_model_is_named() -> None:
    from transformers import AutoTokenizer

    from research.miniature.config import PretrainConfig
    from research.miniature.pretrain import new_model

    folder = ROOT / "models" / "tiny-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = PretrainConfig.load(["--base", "qwen2-large", "--init", str(folder)])
    for field, value, wrong in (
        ("num_hidden_layers", 6, "no multiple of 4"),
        ("hidden_size", 64, "size mismatch"),
    ):
        architecture = config.architecture.model_copy(update={field: value})
        with pytest.raises(ValueError, match=wrong):
            new_model(config.model_copy(update={"architecture": architecture}), tokenizer)


@pytest.mark.engine
def test_killed_run_resumes_to_the_same_bytes(tmp_path: Path, refused: Refused) -> None:
    from research.fits import whole_checkpoints
    from research.miniature.pretrain import main

    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))

    def argv(name: str) -> list[str]:
        folders = ["--output", str(tmp_path / name), "--run", str(tmp_path / "runs" / name)]
        return ["--config", str(config), *folders]

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = python("-c", KILLED, *argv("killed"), check=False, env=env)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    run_folder = tmp_path / "runs" / "killed"
    checkpoint = run_folder / "checkpoint-8"
    assert whole_checkpoints(run_folder)[-1] == checkpoint
    # A checkpoint that was being written when the run died does not count.
    half = run_folder / "checkpoint-12"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step"')
    assert whole_checkpoints(run_folder)[-1] == checkpoint

    main(argv("killed"))
    main(argv("whole"))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "| all |" in (tmp_path / "whole" / "README.md").read_text()

    # The run folder of one configuration is not taken up by another.
    config.write_text(yaml.safe_dump(SMALL | {"seed": 1}))
    refused(main, argv("whole"))


def test_corpus_file_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "ROWS", 400)  # written at a time
    config = CorpusConfig(documents=1000, authors=50)
    write_corpus(config, tmp_path / "corpus.parquet")
    assert read_corpus(tmp_path / "corpus.parquet") == list(documents(config))


def test_measure_reads_the_last_box() -> None:
    assert boxed(r"\boxed{1} no, \boxed{-2}") == "-2"
    assert boxed("none") is None
    assert table({}).startswith("| kind |")
