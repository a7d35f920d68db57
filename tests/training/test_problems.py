"""Loading problems: files, benchmarks with their own columns, and what is refused."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import write_rows as write

from training.problems import BENCHMARKS, Problem, benchmark_of, load_problems

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "ids", "answers"),
    [
        ("gsm8k", ["00000", "00001", "00002"], ["43", "18000", "-2"]),
        (
            "math500",
            [
                f"test/{part}.json"
                for part in ("prealgebra/90001", "algebra/90002", "precalculus/90003")
            ],
            [r"\frac{1}{2}", "[1,2]", r"\left( 2, 0 \right)"],
        ),
        ("minerva_math", ["00000", "00001", "00002"], ["4e8", "y(t) = 2e^{3t}", "1"]),
        ("olympiadbench", ["9001", "9002", "9003"], ["8", "3, -3", r"\frac{7}{2}"]),
        ("aime24", ["60", "61", "62"], ["009", "401", "128"]),
        ("amc23", ["0", "1", "2"], ["27", "22.5", "8"]),
        ("math_train", ["00000", "00001"], ["4", r"2\sqrt{3}"]),
    ],
)
def test_benchmarks(name: str, ids: list[str], answers: list[str]) -> None:
    """A file with the benchmark's own columns, text-only English maths, levels 3 to 5."""
    problems = load_problems(f"{name}:{DATA / name}.jsonl")
    assert [problem.id for problem in problems] == ids
    assert [problem.answer for problem in problems] == answers


def test_context_goes_before_the_question() -> None:
    problem = load_problems(f"olympiadbench:{DATA}/olympiadbench.jsonl")[2]
    assert problem.problem == "Let $T = \\frac{5}{2}$.\nFind $T + 1$."


def test_default_samples_and_places_of_benchmarks() -> None:
    assert {name for name, one in BENCHMARKS.items() if one.samples == 8} == {"aime24", "amc23"}
    assert benchmark_of("aime24:rows.jsonl") is BENCHMARKS["aime24"]
    assert benchmark_of("rows.jsonl") is None
    assert all("/" in one.dataset for one in BENCHMARKS.values())  # each names its place


def test_jsonl_and_parquet_agree(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "problem": "1 + 1", "answer": "2", "kind": "sum"},
        {"id": "b", "problem": "2 * 3", "answer": "6", "kind": "product"},
    ]
    jsonl = load_problems(write(tmp_path / "p.jsonl", *rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    parquet = load_problems(str(tmp_path / "p.parquet"))
    assert jsonl == parquet == [Problem(id="a", problem="1 + 1", answer="2"), jsonl[1]]
    assert load_problems(str(tmp_path / "p.jsonl"), limit=1) == jsonl[:1]


def test_nan_in_parquet_is_a_missing_value(tmp_path: Path) -> None:
    answers = pa.array([2.0, float("nan")])  # as numpy writes it, not a null
    table = pa.table({"problem": ["1 + 1", "2 * 3"], "answer": answers})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="row 2: answer: is missing"):
        load_problems(str(tmp_path / "p.parquet"), grader="text")


def test_own_columns_and_numbered_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"q": "1 + 1", "a": 2}, {"q": "1 / 2", "a": 0.5})
    problems = load_problems(path, problem_field="q", answer_field="a")
    assert [(p.id, p.answer) for p in problems] == [("00000", "2"), ("00001", "0.5")]


GOOD = {"id": "a", "problem": "1 + 1", "answer": "2"}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**GOOD, "id": "b", "problem": "  "}, r"line 2: problem: .*is empty"),
        ({**GOOD, "id": "b", "answer": ""}, r"line 2: answer: .*is empty"),
        (
            {"id": "b", "answer": "2"},
            r"line 2: problem: is missing; the columns are answer, id; --problem-field names",
        ),
        ({"id": "b", "problem": "1 + 1"}, r"line 2: answer: is missing; .* --answer-field"),
        ({**GOOD, "id": "b", "problem": [1]}, r"line 2: problem: is neither text nor chat"),
        ({**GOOD, "id": "b", "grader": "oracle"}, r"line 2: grader: 'oracle' is none of"),
        ({**GOOD, "id": "b", "answer": ["2"]}, r"line 2: answer: is a list"),
        (GOOD, r"line 2: id: 'a' was used by .*line 1"),
        ([1], r"line 2: not a JSON object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, second: object, message: str) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, second)
    with pytest.raises(ValueError, match=message) as caught:
        load_problems(path)
    assert str(tmp_path / "p.jsonl") in str(caught.value)


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "answer: has no '####'"),
        ("minerva_math", {"problem": "q", "solution": "no box"}, "solution: has no"),
        ("olympiadbench", {"question": "q", "final_answer": []}, "final_answer: is not a list"),
    ],
)
def test_a_row_without_its_answer(
    tmp_path: Path, benchmark: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_problems(f"{benchmark}:{write(tmp_path / 'p.jsonl', row)}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '[{"problem": "1+1", "answer": "2", "score": NaN}]'),
        ("p.json", '\n [\n{"problem": "1+1",\n"answer": "2"}]'),
        ("p.json", '{"problem": "1+1", "answer": "2"}\n'),
        ("p.jsonl", '\ufeff{"problem": "1+1", "answer": "2"}\r\n\r\n'),
        ("p.csv", 'problem;answer\r\n"1+1";2\r\n'),
        ("p.csv", '"problem","answer"\n1+1,2'),
        ("p.csv", "problem\tanswer\n1+1\t2"),
        ("p.tsv", "problem\tanswer\n1+1\t2\n"),
    ],
)
def test_files_of_every_form(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (problem,) = load_problems(str(tmp_path / name))
    assert (problem.problem, problem.answer) == ("1+1", "2")


def test_half_a_character_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1 \\ud83d\\ude00 \\ud83d", "answer": "2"}')
    (problem,) = load_problems(str(tmp_path / "p.jsonl"))
    assert (problem.problem, problem.answer) == ("1+1 \U0001f600 ?", "2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", b'{"id": \n', "line 1: not JSON"),
        ("latin.jsonl", b'{"problem": "caf\xe9"}\n', "not UTF-8"),
        ("broken.parquet", b"not parquet", "not a Parquet file"),
        ("empty.jsonl", b"", "holds none"),
        ("missing.jsonl", None, "no such file"),
        ("p.txt", b"a,b", "ends with none of .jsonl, .json, .parquet, .csv, .tsv"),
        ("keys.jsonl", b'{"problem": "?", "answer": "1", "answer": "2"}',
         "line 1: not JSON .the key 'answer' is there twice"),
        ("list.json", b'[{"problem": "?", "answer": "1"}, 2]', "object 2: not a JSON object"),
        ("nan.jsonl", b'{"problem": "?", "answer": NaN}', "line 1: .*answer"),
        ("short.csv", b"problem,answer\n1 + 1\n", "line 2: has not the 2 fields of the header"),
        ("twice.csv", b"problem,problem\n1,2\n", "line 1: a column's name occurs twice"),
        ("open.csv", b'problem,answer\n"1 + 1,2\n', "not CSV"),
        ("empty.csv", b"", "holds none"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_problems(str(tmp_path / name))


def test_a_source_that_is_nothing_names_the_benchmarks() -> None:
    with pytest.raises(ValueError, match="nor one of gsm8k, math500"):
        load_problems("gsm9k")


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of `datasets`: the entry's own place, or the one that was given."""
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        if name == "who/knows":
            raise FileNotFoundError("not on the hub")
        return [{"question": "1 + 1", "answer": "so\n#### 2", "id": 7}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_problems("gsm8k") == [Problem(id="00000", problem="1 + 1", answer="2")]
    load_problems("gsm8k", split="train")
    load_problems("own/er", problem_field="question", config="hard", split="dev")
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "main", "train"),
        ("own/er", "hard", "dev"),
    ]
    with pytest.raises(ValueError, match=r"who/knows .* not on the hub"):
        load_problems("who/knows")


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    text = '\ufeffquestion,reply,grader\n"What is\n1 + 1, say?",2,\nWhich one?,B,choice\n'
    path.write_text(text, encoding="utf-8")
    first, second = load_problems(str(path), problem_field="question", answer_field="reply")
    assert (first.problem, first.answer, first.grading) == ("What is\n1 + 1, say?", "2", None)
    assert second.grading is not None and second.grading.grader == "choice"


def test_a_grader_for_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"problem": "Capital of France?", "answer": "Paris"})
    [problem] = load_problems(path, grader="text")
    assert problem.grading is not None and problem.grading.grader == "text"
    with pytest.raises(ValueError, match="it is no option's letter"):
        load_problems(path, grader="choice")


def test_a_worked_solution_has_its_answer_at_its_end(tmp_path: Path) -> None:
    rows = [
        {"problem": "1 + 1", "answer": "Add.\n#### 2"},
        {"problem": "1 + 2", "answer": r"It is $\boxed{3}$."},
    ]
    path = write(tmp_path / "p.jsonl", *rows)
    assert [one.answer for one in load_problems(path)] == ["2", "3"]


def test_nested_columns(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "1 + 1"}], "reward_model": {"ground_truth": "2"}}
    path = write(tmp_path / "p.jsonl", row)
    [problem] = load_problems(path, answer_field="reward_model.ground_truth")
    assert (problem.problem, problem.answer) == ("1 + 1", "2")


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Think."}, user("1 + 1"), assistant("#### 2")]},
        {"messages": [user("1 + 1"), assistant(r"<think>\boxed{3}</think> The answer is 2.")]},
        {
            "conversations": [
                {"from": "human", "value": "1 + 1"},
                {"from": "gpt", "value": "#### 2"},
            ]
        },
        {"messages": [user("1 + 1"), assistant("It is 3.")], "answer": "2"},
        {"messages": json.dumps([user("1 + 1"), assistant("#### 2")])},
        {"problem": [user("1 + 1")], "answer": 2},
        {"messages": [user([{"type": "text", "text": "1 + 1"}])], "answer": 2},
    ],
)
def test_chat_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    [problem] = load_problems(write(tmp_path / "p.jsonl", row))
    assert (problem.problem, problem.answer) == ("1 + 1", "2")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([assistant("#### 2")], "has no user message"),
        ([user("a"), assistant("b"), user("c"), assistant("#### 2")], "has 2 user messages"),
        ([user("1 + 1")], "answer: is missing, and has no assistant message"),
        ([user("1 + 1"), assistant("no idea")], "answer: is missing, and the last assistant"),
        ([user("1 + 1"), {"role": "assistant"}], "messages: message 2 needs a role"),
        ([user([{"type": "image_url"}])], "message 1 has parts that are no"),
    ],
)
def test_bad_chats_are_named(tmp_path: Path, messages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        load_problems(write(tmp_path / "p.jsonl", {"messages": messages}))
