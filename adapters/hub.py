"""Adapters to and from the hub: push a version to a repository, pull one as a version.

    push(store, "math", "someone/math-lora")
    import_adapter(store, "someone/math-lora", "math", base=base)     # adapters/exchange.py

`HF_ENDPOINT` and `HF_TOKEN` say which hub and who, as in huggingface_hub.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from adapters.exchange import export_adapter, hub_errors
from adapters.first_line import first_line
from adapters.model_card import HUB_ID, BaseFacts, plain_card
from adapters.store import Store

CARD = "README.md"


class HubError(OSError):
    """The hub could not be reached, or refused."""


class Pushed(NamedTuple):
    """What is on the hub now."""

    version: str  # NAME@HASH
    repository: str
    commit: str


def push(
    store: Store, reference: str, repository: str, *, private: bool = False, revision: str = "main"
) -> Pushed:
    """Write a version to a repository of the hub, which is made where there is none.

    Raises:
        ValueError: `repository` is no OWNER/NAME.
        KeyError, AdapterError: as `Store.get`.
        HubError: the hub cannot be reached, or refuses.
    """
    if not HUB_ID.fullmatch(repository):
        raise ValueError(f"{repository[:100]!r} is no repository; write OWNER/NAME")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    with tempfile.TemporaryDirectory(prefix="reasonmaxxer-") as work:
        folder = Path(work, "adapter")
        version = export_adapter(store, reference, folder)
        if not (folder / CARD).is_file():
            made_for = version.manifest.base.model if version.manifest else ""
            known = made_for if HUB_ID.fullmatch(made_for) else None
            (folder / CARD).write_text(plain_card(version.name, BaseFacts(known)))
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
            if revision != "main":
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=f"{version.id}",
            )
        except HFValidationError as error:
            raise ValueError(str(error)) from error
        except hub_errors() as error:
            reason = first_line(error)[:300]
            raise HubError(f"'{repository}' cannot be pushed to: {reason}") from error
    return Pushed(version.id, repository, str(commit.oid))
