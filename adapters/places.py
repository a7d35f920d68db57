"""Where adapters and the base model lie unless a command says otherwise.

The default store is the first of these:

    $REASONMAXXER_ADAPTERS                  where the variable is set
    ./adapters/store                        where the working directory has that folder
    the store of the source checkout        where the program runs from one
    $XDG_DATA_HOME/reasonmaxxer/store       else; ~/.local/share where that variable is not set

An installed package therefore never writes into site-packages.
"""

from __future__ import annotations

import os
from pathlib import Path

from adapters.store import SHIPPED

STORE_VARIABLE = "REASONMAXXER_ADAPTERS"
IN_WORKING_DIRECTORY = Path("adapters", "store")
# The source checkout has a store beside this file and a base model beside this package.
SHIPPED_MODEL = SHIPPED.parents[1] / "models" / "tiny-qwen2"


def default_store() -> Path:
    """The store that a command uses where none is named. It may not exist yet."""
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return Path(named).absolute()
    for folder in (IN_WORKING_DIRECTORY.absolute(), SHIPPED):
        if folder.is_dir():
            return folder
    return user_store()


def user_store() -> Path:
    """The store in the user's data folder, or in the working directory of a user without a home."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # as the XDG specification asks: relative paths are ignored
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return IN_WORKING_DIRECTORY.absolute()
    return data / "reasonmaxxer" / "store"


def default_model() -> str:
    """The miniature base of a source checkout; empty where there is none."""
    return str(SHIPPED_MODEL) if SHIPPED_MODEL.is_dir() else ""
