"""Exporting a search's instance, and the network run to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mess.common.progress import Reporter
from mess.common.records import Figures
from mess.errors import BundleError, MessError
from mess.exits import FINAL
from mess.export.bundle import PlannedExit, export_bundle
from mess.networks.network import OverprovisionedNetwork
from mess.runs.bundles import BASELINE, bundle_path
from mess.runs.cache import RunCache
from mess.runs.network import trained_network
from mess.runs.policies import observed_signals
from mess.runs.results import ChosenExit, SearchResult, cache_of, is_of_cache
from mess.runs.run import Run
from mess.runtime.format import InstanceSource
from mess.runtime.manifest import facts_of, input_of, read_manifest, require_files
from mess.runtime.registry import runtime_of
from mess.search.problem.settings import FinalOnly
from mess.signals.registry import PAIR_SIGNALS, signal_from_json


@dataclass(frozen=True, kw_only=True)
class _Instance:
    """What a bundle is made of, besides the network."""

    setting: str
    policy: str | None
    exits: Sequence[ChosenExit]
    signals: Sequence[NDArray[np.float32] | None]
    """Of every calibration image, by exit; None where an exit has no signal."""
    predicted: Figures
    baseline: Figures
    source: InstanceSource
    certificate: dict[str, Any] | None = None


def export_search(
    place: Run, search_id: str, format_: str, output: Path | None, reporter: Reporter
) -> Path:
    """Write the bundle of a search, and the baseline's beside it where there is none yet."""
    runtime_of(format_)  # raises for a format there is none of
    reporter.message(f"Exporting the search {search_id}.")
    result = place.result(search_id)
    cache = place.open_cache(cache_of(result))
    _require_same_predictions(place, search_id, result, cache)
    network = trained_network(place, torch.device("cpu"))
    baseline = _baseline(result)
    directory = bundle_path(place, BASELINE, format_)
    # Written once: every search of the same predictions is compared with this one.
    if not _is_there(place, directory, baseline.source):
        _export(place, cache, network, baseline, directory, format_, reporter)
    directory = output or bundle_path(place, search_id, format_)
    chosen = _chosen(search_id, result, cache, reporter)
    return _export(place, cache, network, chosen, directory, format_, reporter)


def _require_same_predictions(
    place: Run, search_id: str, result: SearchResult, cache: RunCache
) -> None:
    # Signals may have left memoise.signals since; weights and data would still be the same.
    known = {None, *cache.tables.signal_names, *PAIR_SIGNALS}
    if not is_of_cache(result["cache"], cache.manifest) or any(
        exit_["signal"] not in known for exit_ in result["exits"]
    ):
        raise MessError(
            f"search {search_id!r} ran on other predictions than {cache.store.directory} holds "
            f"now. Run {place.command('search')} again."
        )


def _chosen(search_id: str, result: SearchResult, cache: RunCache, reporter: Reporter) -> _Instance:
    return _Instance(
        setting=result["setting"],
        policy=result.get("policy"),
        exits=result["exits"],
        signals=[*observed_signals(cache, result["exits"], reporter), None],
        predicted=result["predicted"],
        baseline=result["baseline"],
        source={"search": search_id, **result["cache"]},
        certificate=result.get("certificate"),
    )


def _baseline(result: SearchResult) -> _Instance:
    """The network run to its end, as the search of `result` measured it."""
    return _Instance(
        setting=FinalOnly.name,
        policy=None,
        exits=[{"exit_id": FINAL, "signal": None, "threshold": None, "exit_rate": 1.0}],
        signals=[None],
        predicted=result["baseline"],
        baseline=result["baseline"],
        source={"search": None, **result["cache"]},
    )


def _is_there(place: Run, directory: Path, source: InstanceSource) -> bool:
    """Whether a whole bundle lies there that was made of the same."""
    try:
        manifest = facts_of(read_manifest(directory), directory)
        require_files(manifest, directory)
        data = place.config.data
        is_taken = input_of(manifest, directory) == (data.framing, data.normalisation)
        return manifest["source"] == source and is_taken
    except BundleError:
        return False  # none yet, or a damaged one


def _export(
    place: Run,
    cache: RunCache,
    network: OverprovisionedNetwork,
    instance: _Instance,
    directory: Path,
    format_: str,
    reporter: Reporter,
) -> Path:
    table = place.class_table
    facts = {
        "setting": instance.setting,
        "policy": instance.policy,
        "predicted": instance.predicted,
        "baseline": instance.baseline,
        "source": instance.source,
        "classes": list(table.names),
        "palette": [list(color) for color in table.colors],
        "ignore_index": table.ignore_index,
    }
    return export_bundle(
        network,
        _planned(place, cache, instance),
        directory,
        framing=place.config.data.framing,
        normalisation=place.config.data.normalisation,
        format_=format_,
        facts=facts,
        certificate=instance.certificate,
        reporter=reporter,
    )


def _planned(place: Run, cache: RunCache, instance: _Instance) -> list[PlannedExit]:
    known = {signal["name"]: signal for signal in cache.manifest["signals"]}
    known |= {name: signal.to_json() for name, signal in PAIR_SIGNALS.items()}
    rows = {row["exit_id"]: row for row in place.exit_rows}
    planned = []
    heads = 0
    for chosen, signal in zip(instance.exits, instance.signals, strict=True):
        row = rows[chosen["exit_id"]]
        # An image pays for every exit that it has passed, too.
        heads += row["exit_macs"]
        planned.append(
            PlannedExit(
                exit_id=chosen["exit_id"],
                point=row["point"],
                macs=row["backbone_macs"] + heads,
                signal=None
                if chosen["signal"] is None
                else signal_from_json(known[chosen["signal"]]),
                threshold=chosen["threshold"],
                exit_rate=chosen["exit_rate"],
                calibration_signal=signal,
            )
        )
    return planned
