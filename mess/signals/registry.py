"""The signals that decide whether an image leaves at an exit (MESS paper §5.2, 2025 paper §III-IV).

A signal is one class: its settings, its name, and how it follows from the maps of an exit's logits.
It is memoised, searched, measured and exported from that. Built-in ones are in `SIGNALS` and
`PAIR_SIGNALS`; `memoise.signals` takes `package.module:Class` besides. No torch: the maps are
`mess.signals.maps.PixelMaps`, and a signal calls their methods alone.

Signals are oriented so that larger means leave.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mess.common.plugins import imported
from mess.config import MemoiseConfig
from mess.errors import ConfigError
from mess.signals.builtin import (
    ConfidentShare,
    ConfidentShares,
    MeanConfidence,
    NormalisedEntropy,
    VariationOfInformation,
)
from mess.signals.signal import NATIVE, CompiledSignals, Signal

SIGNALS: dict[str, type[Signal]] = {
    signal.kind: signal for signal in (ConfidentShare, MeanConfidence, NormalisedEntropy)
}
"""What `memoise.signals` names; a new signal is one class and its name here."""

PAIR_SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (VariationOfInformation(),)}
"""Signals that compare two exits, by name; from stored label maps: `mess.signals.variation`."""


COMPILED: dict[tuple[type[Signal], str], Callable[[Sequence[Any]], CompiledSignals]] = {
    (ConfidentShare, NATIVE): ConfidentShares
}
"""By class and resolution, how several of them are measured faster than by `Signal.of`."""


def configured_signals(config: MemoiseConfig) -> list[Signal]:
    """The signals of an exit that a configuration asks for, in the order of the cache's columns."""
    found = [signal for kind in config.signals for signal in _class(kind).configured(config)]
    for name in (names := [signal.name for signal in found]):
        if names.count(name) > 1:
            raise ConfigError(
                f"memoise.signals gives two signals the name {name!r}; names must be unique."
            )
    return found


def signal_from_json(value: Mapping[str, Any]) -> Signal:
    """The inverse of `Signal.to_json`."""
    told = ("name", "kind", "policies")
    settings = {key: setting for key, setting in value.items() if key not in told}
    if value["kind"] in PAIR_SIGNALS:
        return PAIR_SIGNALS[value["kind"]]
    return _class(value["kind"])(**settings)


def expected_signals(
    config: MemoiseConfig, known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What a cache of this configuration says of its signals; nothing is imported.

    A user's own are as `known`, what the cache says, has them.
    """
    found: list[dict[str, Any]] = []
    for kind in config.signals:
        if kind in SIGNALS:
            found += [signal.to_json() for signal in SIGNALS[kind].configured(config)]
        else:
            found += [dict(signal) for signal in known if signal.get("kind") == kind]
    return found


def names_by_policy(signals: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Names of the signals that make up each policy, by the policy's name; nothing is imported.

    signals: as `Signal.to_json` has them.
    """
    members: dict[str, list[str]] = {}
    for signal in signals:
        # Only those of a user's own say so themselves.
        own = signal.get("policies")
        for policy in signal_from_json(signal).policies if own is None else own:
            members.setdefault(policy, []).append(signal["name"])
    return {policy: tuple(names) for policy, names in members.items()}


def distinct(members: Mapping[str, Sequence[str]]) -> list[str]:
    """The policies without those that have the same signals as one before."""
    first: dict[tuple[str, ...], str] = {}
    for policy, names in members.items():
        first.setdefault(tuple(names), policy)
    return list(first.values())


def _class(kind: str) -> type[Signal]:
    if kind in SIGNALS:
        return SIGNALS[kind]
    if kind in PAIR_SIGNALS:
        raise ConfigError(
            f"memoise.signals: {kind!r} compares two exits and needs no memoising, only "
            f"memoise.label_maps = true. Leave it out; `mess search --policy {kind}` computes it."
        )
    found = imported(kind, "signal", "package.module:Class", SIGNALS)
    if not (
        isinstance(found, type)
        and issubclass(found, Signal)
        and getattr(found, "kind", None) == kind
    ):
        raise ConfigError(
            f"memoise.signals: {kind!r} must be a subclass of mess.signals.Signal whose `kind` is "
            "that very text, so that manifests tell where it comes from."
        )
    if inspect.isabstract(found):
        raise ConfigError(
            f"memoise.signals: {kind!r} does not define `of(self, maps)`, which gives the signal "
            "of each image, shape (B,)."
        )
    if found.compares:
        raise ConfigError(
            f"memoise.signals: {kind!r} compares two exits, and signals are memoised of one. "
            f"Those that compare are built in: {', '.join(PAIR_SIGNALS)}."
        )
    return found
