"""The prompt that chats are rendered with, and which adapters were fitted on another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapters.manifest import PROMPT, Manifest
from adapters.prompt import PromptFormat
from adapters.recipe import Recipe, recipes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ServedPrompt:
    """The prompt format of the server's base and recipe."""

    family: str
    format: PromptFormat
    digests: Mapping[str, str] = field(default_factory=dict)  # family -> what it would render with

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> ServedPrompt:
        found = PromptFormat.of(tokenizer, recipe.prompt)
        others = {
            family: PromptFormat.of(tokenizer, one.prompt).digest
            for family, one in recipes().items()
        }
        return cls(recipe.family, found, others | {recipe.family: found.digest})

    def complaint(self, manifest: Manifest) -> str | None:
        """How an adapter's prompt differs from the one that is served; None where it does not.

        A manifest names the prompt's digest, or, if an earlier release wrote it, the family alone.
        """
        fitted = manifest.made_by.get(PROMPT) or self.digests.get(manifest.family)
        if fitted in (None, self.format.digest):
            return None
        if fitted == self.digests.get(manifest.family):
            return (
                f"was fitted with the prompt of family '{manifest.family}', and chats are rendered "
                f"with that of '{self.family}'; --family {manifest.family} serves its own"
            )
        return (
            f"was fitted with another prompt than family '{self.family}' has here; serve it with "
            "the recipe that it was fitted with (--family FILE.yaml), or with --chat-template"
        )
