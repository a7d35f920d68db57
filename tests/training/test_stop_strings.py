"""Stop strings in transformers: where an answer ends, by token and by character."""

from __future__ import annotations

import torch
from support import ROOT
from transformers import AutoTokenizer

from training.generation.stop_strings import StopStrings

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-qwen2")
TEXT = "The answer is 12.\nQuestion: What is 1+1?\nAnswer: 2"


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def test_an_answer_is_cut_behind_the_token_that_completes_the_string() -> None:
    found = StopStrings(TOKENIZER, ["\nQuestion:"]).cut(ids(TEXT))
    assert found is not None
    assert found.text == "The answer is 12."
    assert found.token_ids == ids(TEXT)[: len(found.token_ids)]
    assert "\nQuestion:" in TOKENIZER.decode(found.token_ids)
    assert "\nQuestion:" not in TOKENIZER.decode(found.token_ids[:-1])


def test_the_string_that_is_complete_first_wins() -> None:
    found = StopStrings(TOKENIZER, ["What", "Question", "\nQuest"]).cut(ids(TEXT))
    assert found is not None and found.text == "The answer is 12."


def test_what_does_not_occur_cuts_nothing() -> None:
    assert StopStrings(TOKENIZER, ["never"]).cut(ids(TEXT)) is None
    assert StopStrings(TOKENIZER, []).cut(ids(TEXT)) is None


def test_rows_end_when_the_string_is_complete() -> None:
    stops = StopStrings(TOKENIZER, ["\nQuestion:", "é"])
    found = stops.cut(ids(TEXT))
    assert found is not None
    count = len(found.token_ids)
    rows = torch.tensor([ids(TEXT)[:count], ids(TEXT)[1 : count + 1], ids("1" * 99)[:count]])
    assert stops.ended(rows).tolist() == [True, True, False]
    assert stops.ended(rows[:, :-1]).tolist() == [False, True, False]
    accented = torch.tensor([ids("caf é")])
    assert stops.ended(accented).tolist() == [True]  # of two bytes
    assert not StopStrings(TOKENIZER, []).ended(rows).any()
