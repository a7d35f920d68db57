"""What a request may say about guidance, and what two distributions become."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

from adapters.manifest import Gate
from vllm_gate import guidance, token_report
from vllm_gate.params import NEGATIVE, GateParams, resolve
from vllm_gate.step_plan import gate_of

GATE = Gate(tau=0.5, rate=0.1, tokens=1000, table=[(0.1, 0.5)])


def test_logits_go_away_from_the_unconditional_ones() -> None:
    conditional, unconditional = torch.tensor([1.0, 3.0, -2.0]), torch.tensor([2.0, 3.0, -4.0])
    assert guidance.guide(conditional, unconditional, 1.0).tolist() == conditional.tolist()
    assert guidance.guide(conditional, unconditional, 0.0).tolist() == unconditional.tolist()
    assert guidance.guide(conditional, unconditional, 1.5).tolist() == [0.5, 3.0, -1.0]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5])
def test_a_forbidden_token_stays_forbidden(scale: float) -> None:
    """The grammar's mask is on the unconditional logits."""
    masked = torch.tensor([1.0, -torch.inf])
    assert guidance.guide(torch.tensor([4.0, 9.0]), masked, scale)[1] == -torch.inf


def test_a_client_may_leave_the_prompt_out() -> None:
    assert resolve({"guidance_scale": 1.5}, GATE)["guidance_prompt"] == NEGATIVE
    assert not any(name.startswith("guidance") for name in resolve({"guidance_scale": 1}, GATE))
    with pytest.raises(ValueError, match="guidance_prompt: goes with guidance_scale"):
        resolve({"guidance_prompt": "x"}, GATE)


def test_the_base_itself_can_be_guided() -> None:
    def of(params: GateParams) -> GateParams | None:
        return gate_of(SimpleNamespace(extra_args=params.extra_args()), None)  # type: ignore[arg-type]

    assert of(GateParams(0.5)) is None
    guided = GateParams(0.5, guidance_scale=2.0, guidance_prompt=(1,))
    assert of(guided) == guided


def test_tokens_that_the_model_does_not_know() -> None:
    tokenizer: Any = SimpleNamespace(max_token_id=9)
    guidance.check_prompt({"guidance_prompt": [9]}, tokenizer)
    guidance.check_prompt({"guidance_prompt": [10]}, None)  # vLLM does not look at prompts either
    guidance.check_prompt(None, tokenizer)
    with pytest.raises(ValueError, match="guidance_prompt: token 10"):
        guidance.check_prompt({"guidance_prompt": [9, 10]}, tokenizer)


def test_plain_vllm_refuses_them_as_the_clients_fault() -> None:
    begin = token_report.from_new_request(lambda *_: None)  # type: ignore[arg-type,return-value]
    request: Any = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={"guidance_prompt": [10]})
    )
    with pytest.raises(VLLMValidationError, match="guidance_prompt: token 10"):
        begin(object, SimpleNamespace(max_token_id=9), request)  # type: ignore[arg-type]
    assert begin(object, SimpleNamespace(max_token_id=10), request) is None  # type: ignore[arg-type]
