"""Models of Hugging Face's transformers from a configuration: nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from mess.errors import WeightsError
from mess.networks.backbones.libraries import built, library, require_options


def configured(
    name: str, config: str, num_classes: int, weights: str, options: Mapping[str, Any]
) -> Any:
    """The library's configuration class `config` with `options`, for the backbone called `name`.

    Raises ConfigError where the library is not installed or the class has no such option,
    WeightsError for weights.
    """
    if weights != "none":
        raise WeightsError(
            f'{name} has no weights of its backbone alone, got {weights!r}; use "none".'
        )
    make = getattr(_transformers(name), config)
    require_options(options, inspect.get_annotations(make), config)
    return built(lambda: make(num_labels=num_classes, **options), config)


def built_from(model: str, config: Any, name: str) -> nn.Module:
    """The library's class `model` of a configuration, newly initialised, in training mode."""
    make = getattr(_transformers(name), model)
    return built(lambda: make(config), model).train()


def _transformers(name: str) -> Any:
    return library(name, "transformers", "transformers", "transformers")
