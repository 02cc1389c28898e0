"""Parts of a user's own, named in a configuration as package.module:name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from mess.errors import ConfigError, nearest

LISTENERS: list[Callable[[str], None]] = []
"""Called with what is about to be imported: a run and a configuration may name code."""

_SAID = set[str]()


def imported(name: str, what: str, form: str, known: Iterable[str]) -> Any:
    """What `name` stands for; `known` are the names of the built-in ones, `form` is shown.

    Importing runs the module, and what hears of that first is in `LISTENERS`. Raises ConfigError
    for a name that is neither, or that cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"no {what} is named {name!r}; {nearest(name, known)} One of your own is {form}."
        )
    if name not in _SAID:
        _SAID.add(name)
        for listener in LISTENERS:
            listener(f"Importing the {what} {name}, which the configuration names.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises
        raise ConfigError(
            f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}. Modules are "
            "looked for in PYTHONPATH and among installed packages; PYTHONPATH=. before the "
            "command adds the current folder."
        ) from error
