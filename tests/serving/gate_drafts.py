"""Drafters for the gate's tests, which know the answers (vLLM's method `custom_class`).

A random model never says what an n-gram or a small model would guess. These know what the reference
says, so that decision points fall inside accepted drafts all the time; now and then they err, or
draft less. The file that REASONMAXXER_TEST_DRAFTS names holds what they know.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

KNOWN = "REASONMAXXER_TEST_DRAFTS"
VOCAB = 160


class Drafter:
    """What both have in common: vLLM's side of a drafter."""

    def __init__(self, vllm_config: Any) -> None:
        self.drafts = vllm_config.speculative_config.num_speculative_tokens
        self.known = json.loads(Path(os.environ[KNOWN]).read_text())

    def load_model(self, *_: Any, **__: Any) -> None:
        """There is none."""

    def propose(
        self, sampled: list[list[int]], counts: Any, tokens: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Drafts for each request, also for one whose gate has opened and that got no token."""
        said = [tuple(tokens[row, : int(counts[row])].tolist()) for row in range(len(sampled))]
        return [self.guess(one) for one in said]

    def guess(self, said: tuple[int, ...]) -> list[int]:
        """What may follow."""
        raise NotImplementedError


class Oracle(Drafter):
    """Knows whole sequences. Errs in three of ten drafts."""

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self.choose = random.Random(0)
        self.sequences = [tuple(one) for one in self.known["sequences"]]

    def guess(self, said: tuple[int, ...]) -> list[int]:
        """What one of the sequences that begin so goes on with."""
        length = len(said)
        found = [one for one in self.sequences if len(one) > length and one[:length] == said]
        if not found or self.choose.random() < 0.1:
            return []
        end = length + self.choose.randint(1, self.drafts)
        guessed = list(self.choose.choice(found)[length:end])
        if self.choose.random() < 0.3:
            guessed[self.choose.randrange(len(guessed))] = self.any_token()
        return guessed

    def any_token(self) -> int:
        """One at random."""
        return self.choose.randrange(1, VOCAB)


class Table(Drafter):
    """Knows what to guess after the tokens that follow a prompt of a given length."""

    def guess(self, said: tuple[int, ...]) -> list[int]:
        """The same each time."""
        table = self.known["table"]
        answer = ",".join(map(str, said[table["prompt"] :]))
        return table["drafts"].get(answer, [])


def instead_of_ngrams() -> None:
    """Put the Oracle in the place of the V2 runner's n-gram drafter, which needs a GPU.

    That runner takes no custom drafter. It always verifies as many drafts as there may be, so that
    random ones fill up what the Oracle leaves out.
    """
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    def propose(self: Any, input_batch: Any, *_: Any, dummy_run: bool = False, **__: Any) -> Any:
        count = input_batch.num_reqs
        if dummy_run:
            return self.drafts[:count]
        if not hasattr(self, "oracle"):
            self.oracle = Oracle(self.vllm_config)
        for row, slot in enumerate(input_batch.idx_mapping.tolist()):
            length = int(self.req_states.total_len.gpu[slot])
            said = tuple(self.req_states.all_token_ids.gpu[slot, :length].tolist())
            guessed = self.oracle.guess(said)
            missing = self.num_speculative_steps - len(guessed)
            guessed += [self.oracle.any_token() for _ in range(missing)]
            self.drafts[row] = self.drafts.new_tensor(guessed)
        return self.drafts[:count]

    NgramGPUSpeculator.propose = propose
