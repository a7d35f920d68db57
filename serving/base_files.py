"""The files of the base that the engine will load, so that the launcher looks at the same ones.

    --model owner/base --revision v2 --download-dir /models --tokenizer owner/other

The engine reads config.json and the tokenizer from the hub's cache, and the weights from
--download-dir. The launcher fetches the small files into --download-dir too: it checks adapters
against a folder that has both.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapters.base_checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseFiles:
    """Which files of which revision; None: vLLM's default, as in its flags."""

    model: str
    revision: str | None = None
    code_revision: str | None = None
    download_dir: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    trust_remote_code: bool = False
    token: bool | str | None = None

    @classmethod
    def of(cls, args: Namespace) -> BaseFiles:
        """Those that vLLM's arguments name."""
        return cls(
            model=args.model,
            revision=args.revision,
            code_revision=args.code_revision,
            download_dir=args.download_dir,
            tokenizer=args.tokenizer,
            tokenizer_revision=args.tokenizer_revision,
            trust_remote_code=args.trust_remote_code,
            token=args.hf_token,
        )

    def fetch(self) -> PreTrainedTokenizerBase:
        """Have config.json and the tokenizer here. Returns the tokenizer.

        Raises:
            OSError, ValueError: there is no such model or revision, or it is out of reach.
        """
        from transformers import AutoConfig, AutoTokenizer

        code = {} if self.code_revision is None else {"code_revision": self.code_revision}
        AutoConfig.from_pretrained(self.model, revision=self.revision, **self._common, **code)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.tokenizer or self.model,
            revision=self.tokenizer_revision or self.revision,
            **self._common,
        )
        return tokenizer

    def checkpoint(self) -> BaseCheckpoint:
        """The base as adapters are checked against it; the weights may still be on their way.

        Raises:
            FileNotFoundError: the model is not here.
        """
        return BaseCheckpoint.open(self.model, self.revision, self.download_dir)

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "cache_dir": None if os.path.isdir(self.model) else self.download_dir,
            "trust_remote_code": self.trust_remote_code,
            "token": self.token,
        }
