"""Other libraries: imported when a backbone asks for them, and what to do where that fails."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from mess.errors import ConfigError, MessError, nearest

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def library(backbone: str, module: str, package: str, extra: str) -> Any:
    """The module of a library that `backbone` needs; ConfigError with the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"backbone.name = {backbone!r} needs {package}, which is not installed; run: "
            f"pip install mess[{extra}]"
        ) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a clause about an unknown name, where there are too many known ones to list."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def require_options(options: Iterable[str], known: Iterable[str], what: str) -> None:
    """ConfigError for an option that `what` does not have: libraries pass unknown ones over."""
    known = list(known)
    for name in options:
        if name not in known:
            raise ConfigError(f"{what} has no option {name!r}; {nearest(name, known)}")


def keywords(function: Callable[..., Any]) -> list[str]:
    """Names of the keyword arguments of a function or class."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind in named]


def built(build: Callable[[], T], what: str) -> T:
    """What a library's `build` returns; ConfigError with its first line of what goes wrong."""
    try:
        return build()
    except MessError:
        raise
    except Exception as error:  # an assertion, a KeyError or others, from library to library
        raise ConfigError(f"{what} cannot be built: {first_line(error)}.") from error


def on_default_device(build: Callable[[], M]) -> M:
    """What `build` makes; on the meta device by way of the CPU where it computes on the way."""
    try:
        return build()
    except RuntimeError:
        if torch.get_default_device().type != "meta":
            raise
    # Random numbers are left to those networks that keep them.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return build().to("meta")


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to quote."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    heading = lines[0].endswith(":") and len(lines) > 1
    return " ".join(line.strip() for line in lines[: 2 if heading else 1]).rstrip(".")
