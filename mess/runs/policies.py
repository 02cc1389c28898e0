"""The tables of a policy: its signals alone, or the comparisons of pairs of exits. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mess.cache.predictions.store import CacheManifest
from mess.common.progress import Reporter
from mess.errors import CacheError, MessError, nearest
from mess.runs.cache import RunCache
from mess.runs.pair_signals import pair_signals
from mess.runs.results import ChosenExit
from mess.search.exact.workers import Team
from mess.search.problem.tables import Tables
from mess.signals.registry import PAIR_SIGNALS, names_by_policy

ANY = "any"
"""Every signal of the exits together: each early exit has the one that serves best."""

ALL = "all"
"""Every policy, one search each: `mess.commands.compare`."""

PREFERRED = ("share", ANY)
"""What is searched where no policy is named: that of the MESS paper where it was memoised."""


def known_policies(manifest: CacheManifest) -> dict[str, tuple[str, ...]]:
    """The signals of every policy that a cache can be searched with, by the policy's name."""
    own = manifest["signals"]
    every = {ANY: tuple(signal["name"] for signal in own)}
    pairs = [signal.to_json() for signal in PAIR_SIGNALS.values()]
    return names_by_policy([*own, *pairs]) | every


def policy_tables(
    cache: RunCache, policy: str | None, reporter: Reporter, team: Team | None = None
) -> tuple[Tables, str]:
    """Tables of a cache that have the signals of a policy alone, and the policy's name.

    For one that compares exits this computes what no earlier search has; of a `team` the first
    process does. Raises MessError that names the policies there are.
    """
    tables, known = cache.tables, known_policies(cache.manifest)
    if policy is None:
        policy = next(name for name in PREFERRED if name in known)
    if policy not in known:
        raise MessError(
            f"the cache {cache.name!r} has no signals for the policy {policy!r}; "
            f"{nearest(policy, known)} memoise.signals says what is memoised."
        )
    names = known[policy]
    if policy in PAIR_SIGNALS:
        # All meet in `gather`: the first once it has written, the others before they read.
        if team and team.rank:
            team.gather(b"")
        pairs = pair_signals(cache, reporter)
        if team and not team.rank:
            team.gather(b"")
        return _comparing(tables, names, pairs), policy
    columns = [tables.signal_names.index(name) for name in names]
    # Indexing with a list leaves the axes in another order in memory; `copy` puts them right.
    return replace(tables, signals=tables.signals[:, :, columns].copy(), signal_names=names), policy


def observed_signals(
    cache: RunCache, exits: Sequence[ChosenExit], reporter: Reporter
) -> list[NDArray[np.float32] | None]:
    """The signal of every image at each exit of an instance but the last, None where it has none.

    `exits` are those of result.json. Raises CacheError for a signal the cache does not have.
    """
    tables = cache.tables
    position = [tables.exit_ids.index(row["exit_id"]) for row in exits]
    names = [row["signal"] for row in exits[:-1]]
    pairs = None
    if any(name in PAIR_SIGNALS for name in names):
        wanted = np.zeros((tables.exits, tables.exits), dtype=np.bool_)
        # The first exit has none before it to compare with, and the last one decides nothing.
        wanted[position[:-2], position[1:-1]] = True
        pairs = pair_signals(cache, reporter, wanted)
    found: list[NDArray[np.float32] | None] = []
    for depth, name in enumerate(names):
        if name is None:
            found.append(None)
        elif name in PAIR_SIGNALS and pairs is not None:
            found.append(pairs[position[depth - 1], position[depth]])
        elif name in tables.signal_names:
            found.append(tables.signals[position[depth], :, tables.signal_names.index(name)])
        else:
            raise CacheError(
                f"the cache {cache.name!r} has no signal {name!r} any more. Add it to "
                f"memoise.signals and run {cache.store.remedy} again."
            )
    return found


def _comparing(tables: Tables, names: tuple[str, ...], pairs: NDArray[np.float32]) -> Tables:
    nothing = np.zeros((tables.exits, tables.images, 0), dtype=np.float32)
    return replace(tables, signals=nothing, signal_names=names, pairs=pairs)
