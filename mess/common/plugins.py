"""Parts of a user's own, named in a configuration as package.module:name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mess.errors import ConfigError, nearest


def imported(name: str, what: str, form: str, known: Iterable[str]) -> Any:
    """What `name` stands for; `known` are the names of the built-in ones, `form` is shown.

    Raises ConfigError for a name that is neither, or that cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"no {what} is named {name!r}; {nearest(name, known)} One of your own is {form}."
        )
    if (here := str(Path.cwd())) not in sys.path:
        # The `mess` script, unlike `python -m mess`, does not look for modules where it is called.
        # Last, so that no file there hides an installed package of its name.
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises
        raise ConfigError(
            f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}. Modules are "
            "looked for in the current folder, in PYTHONPATH and among installed packages."
        ) from error
