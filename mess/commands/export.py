"""Exporting a search's instance, and the network run to its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mess.common.progress import Reporter
from mess.config import Config
from mess.errors import BundleError, MessError
from mess.exits import FINAL
from mess.export.bundle import PlannedExit, export_bundle
from mess.export.programs import Format
from mess.networks.network import OverprovisionedNetwork
from mess.runs.bundles import baseline_path
from mess.runs.identity import cache_of, exit_rows, is_of_cache
from mess.runs.network import class_table, trained_network
from mess.runs.policies import observed_signals
from mess.runs.run import Run
from mess.runs.tables import load_tables
from mess.runtime.manifest import read_manifest
from mess.search.problem.settings import FinalOnly
from mess.signals.registry import PAIR_SIGNALS, signal_from_json


def export_search(
    place: Run, search_id: str, format_: Format, output: Path | None, reporter: Reporter
) -> Path:
    """Write the bundle of a search, and the baseline's beside it where there is none yet."""
    result = json.loads((place.search(search_id) / "result.json").read_text(encoding="utf-8"))
    cache = cache_of(result)
    tables, manifest = load_tables(place, cache)
    known = {None, *tables.signal_names, *PAIR_SIGNALS}
    if not is_of_cache(result, manifest) or any(
        exit_["signal"] not in known for exit_ in result["exits"]
    ):
        raise MessError(
            f"search {search_id!r} ran on other predictions than {place.cache(cache)} holds now. "
            f"Run {place.command('search')} again."
        )
    config = place.config()
    network = trained_network(place, config, torch.device("cpu"))
    source = {"search": search_id, **result["cache"]}
    _export_baseline(place, config, network, result, format_, reporter)
    suffix = "" if format_ == "onnx" else f"-{format_}"
    directory = output or place.bundle(search_id + suffix)
    return _export(place, config, network, result, source, directory, format_, reporter)


def _export_baseline(
    place: Run,
    config: Config,
    network: OverprovisionedNetwork,
    result: Mapping[str, Any],
    format_: Format,
    reporter: Reporter,
) -> None:
    directory = baseline_path(place, format_)
    source = {"search": None, **result["cache"]}
    try:
        if read_manifest(directory)["source"] == source:
            return
    except BundleError:
        pass  # none yet, or a damaged one
    whole = {
        "setting": FinalOnly.name,
        "exits": [{"exit_id": FINAL, "signal": None, "threshold": None, "exit_rate": 1.0}],
        "predicted": result["baseline"],
        "baseline": result["baseline"],
        "cache": result["cache"],
    }
    _export(place, config, network, whole, source, directory, format_, reporter)


def _export(
    place: Run,
    config: Config,
    network: OverprovisionedNetwork,
    result: Mapping[str, Any],
    source: Mapping[str, Any],
    directory: Path,
    format_: Format,
    reporter: Reporter,
) -> Path:
    table = class_table(place)
    facts = {
        "setting": result["setting"],
        "policy": result.get("policy"),
        "predicted": result["predicted"],
        "baseline": result["baseline"],
        "source": source,
        "classes": list(table.names),
        "palette": [list(color) for color in table.colors],
        "ignore_index": table.ignore_index,
    }
    return export_bundle(
        network,
        _planned(place, result, reporter),
        directory,
        size=config.data.size,
        format_=format_,
        facts=facts,
        reporter=reporter,
    )


def _planned(place: Run, result: Mapping[str, Any], reporter: Reporter) -> list[PlannedExit]:
    cache = cache_of(result)
    tables, manifest = load_tables(place, cache)
    known = {signal["name"]: signal_from_json(signal) for signal in manifest["signals"]}
    known |= PAIR_SIGNALS
    rows = {row["exit_id"]: row for row in exit_rows(place)}
    observed = observed_signals(place, cache, tables, manifest, result["exits"], reporter)
    planned = []
    heads = 0
    for chosen, signal in zip(result["exits"], [*observed, None], strict=True):
        exit_id = chosen["exit_id"]
        heads += rows[exit_id]["exit_macs"]
        planned.append(
            PlannedExit(
                exit_id=exit_id,
                point=rows[exit_id]["point"],
                macs=rows[exit_id]["backbone_macs"] + heads,
                signal=None if chosen["signal"] is None else known[chosen["signal"]],
                threshold=chosen["threshold"],
                exit_rate=chosen["exit_rate"],
                calibration_signal=signal,
            )
        )
    return planned
