"""The table of memory and time: the formula on known models, and the page that shows it."""

from __future__ import annotations

import pytest
from support import ROOT, Refused

from training.resources import SHAPES, Gpu, Work, estimate, main, table

# As the models' own pages give them.
PARAMETERS = {"Qwen2.5-1.5B": 1.54e9, "Qwen2.5-7B": 7.62e9, "Qwen2.5-32B": 32.8e9}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_model(shape) -> None:
    assert shape.parameters == pytest.approx(PARAMETERS.get(shape.name, 70.6e9), rel=0.01)


def test_the_shipped_base_has_as_many_as_counted() -> None:
    from training.hf_model import load_model
    from training.resources import Shape

    model = load_model(str(ROOT / "models" / "tiny-qwen2"), "float32")
    config = model.config
    shape = Shape(
        "tiny",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
        config.tie_word_embeddings,
    )
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)


def test_larger_gpus_and_shorter_answers_cost_less() -> None:
    large = SHAPES[-1]
    assert estimate(large, Gpu(), Work()).training_gpus == 4
    assert estimate(large, Gpu(memory_gb=192), Work()).training_gpus == 1
    assert estimate(large, Gpu(memory_gb=192), Work()).sampling_gpus < (
        estimate(large, Gpu(), Work()).sampling_gpus
    )
    short = estimate(SHAPES[0], Gpu(), Work(answer=400))
    assert short.sampling_hours == pytest.approx(
        estimate(SHAPES[0], Gpu(), Work()).sampling_hours / 2
    )


def test_the_page_shows_this_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(Gpu(), Work()) in (ROOT / "docs" / "real-models-gpu.md").read_text()
    assert main(["--memory-gb", "192"]) == 0
    shown = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[5] for line in shown] == ["1"] * len(SHAPES)


def test_gpus_too_small_for_two_layers_are_not_counted_for_ever(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert estimate(SHAPES[-1], Gpu(memory_gb=8), Work()).training_gpus == 0
    assert main(["--memory-gb", "8"]) == 0
    assert "| too small | 13 GB |  |" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--memory-gb", "--bandwidth", "--teraflops", "--utilization"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_gpu_of_nothing_is_refused(flag: str, value: str, refused: Refused) -> None:
    assert f"{flag}: must be above 0" in refused(main, [f"{flag}={value}"])
