"""The newest search's instance on the calibration split: what the report says and draws of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mess.cache.compression import decompress
from mess.common.metrics import iou
from mess.common.progress import Silent
from mess.errors import CacheError
from mess.exits import FINAL
from mess.report import figures as report_figures
from mess.report.figures import Histogram
from mess.runs.cache import RunCache
from mess.runs.part_costs import load_costs
from mess.runs.policies import observed_signals
from mess.runs.results import SearchResult
from mess.runs.run import Run
from mess.search.problem.settings import find_setting
from mess.signals.decision import answering_exit

_HISTOGRAM_BINS = 30
_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The instance of a search on the calibration split (M exits, I images).

    `answer` holds, for each image, the position of the exit that answers it; None where the
    instance has no rule to follow: every exit of an anytime instance answers.
    """

    result: SearchResult
    exits: NDArray[np.intp]
    """(M,): indices into the tables."""
    signals: Sequence[NDArray[np.float32] | None]
    """M - 1 arrays of shape (I,), None where an exit has no signal."""
    answer: NDArray[np.intp] | None


def path_latencies(run: Run, cache: RunCache, result: SearchResult | None) -> dict[str, float]:
    """Milliseconds of the way through each exit, by the profile that the search of `result` used.

    Empty where there is no profile, or a stale one: its own section of the report says so.
    """
    # Paths alone are shown, which take no signal.
    bare = replace(cache.tables, signals=cache.tables.signals[:, :, :0], signal_names=())
    try:
        costs = load_costs(run, cache, bare, result.get("profile") if result else None)
    except CacheError:
        return {}
    if "latency" not in costs:
        return {}
    cost = costs["latency"]
    paths = cost.backbone[bare.point] + cost.exit + cost.answer
    return dict(zip(bare.exit_ids, paths.tolist(), strict=True))


def instance_of(cache: RunCache, result: SearchResult) -> Instance:
    """Follow the exits and thresholds of `result` on every image of the cache.

    Raises CacheError for an exit that the cache does not have.
    """
    tables = cache.tables
    unknown = [row["exit_id"] for row in result["exits"] if row["exit_id"] not in tables.exit_ids]
    if unknown:
        raise CacheError(
            f"the search chose {unknown[0]!r}, which the cache {cache.name!r} does not have. "
            "Search again."
        )
    exits = np.array([tables.exit_ids.index(row["exit_id"]) for row in result["exits"]])
    early = result["exits"][:-1]
    nobody = Instance(result=result, exits=exits, signals=(), answer=None)
    if find_setting(result["setting"]).every_exit_answers:
        return nobody
    try:
        signals = observed_signals(cache, result["exits"], Silent())
    except CacheError:  # a signal that is not memoised any more, or label maps that are gone
        return nobody
    answer = answering_exit(signals, [row["threshold"] for row in early], tables.images)
    return Instance(result=result, exits=exits, signals=signals, answer=answer)


def thresholds(cache: RunCache, instance: Instance) -> dict[str, Any]:
    """Histograms of the signals with their thresholds, and the IoU of every class."""
    panels = _panels(instance)
    return {
        "figure": Markup(report_figures.histograms(panels)) if panels else None,
        "routed": instance.answer is not None,
        "images": cache.tables.images,
        **_per_class(cache, instance),
    }


def _panels(instance: Instance) -> list[Histogram]:
    panels: list[Histogram] = []
    if instance.answer is None:
        return panels
    for position, signal in enumerate(instance.signals):
        row = instance.result["exits"][position]
        name, threshold = row["signal"], row["threshold"]
        if signal is None or name is None or threshold is None:
            continue
        # Of signals that lie close together numpy refuses so many bins in float32.
        edges = np.histogram_bin_edges(signal.astype(np.float64), bins=_HISTOGRAM_BINS)
        counts = [
            np.histogram(signal[where], edges)[0]
            for where in (
                instance.answer == position,
                instance.answer > position,
                instance.answer < position,
            )
        ]
        panels.append(
            Histogram(
                exit_id=row["exit_id"],
                signal=name,
                threshold=threshold,
                edges=edges,
                answered=counts[0],
                onward=counts[1],
                earlier=counts[2],
            )
        )
    return panels


def _per_class(cache: RunCache, instance: Instance) -> dict[str, Any]:
    """IoU of every class: of the routed answers, or of each exit where all of them answer."""
    tables = cache.tables
    label = tables.label.sum(0)
    images = np.arange(tables.images)

    def of(exits: NDArray[np.intp] | int) -> list[float | None]:
        hits = tables.intersection[exits, images].sum(0)
        values = iou(hits, tables.predicted[exits, images].sum(0), label)
        return [None if np.isnan(value) else float(value) for value in values]

    if instance.answer is not None:
        columns = {"instance": of(instance.exits[instance.answer])}
    else:
        ids = [tables.exit_ids[index] for index in instance.exits]
        columns = {exit_id: of(ids_at) for exit_id, ids_at in zip(ids, instance.exits, strict=True)}
        # It is the baseline, which comes last.
        columns.pop(FINAL, None)
    columns["baseline"] = of(tables.final)
    shares = label / label.sum()
    known = instance.result.get("intervals", {})
    # By position: two classes may have one name.
    told = dict(enumerate(known.get("classes", ())))
    classes = [
        {
            "name": name,
            "share": float(shares[i]),
            "ious": [column[i] for column in columns.values()],
            "intervals": told.get(i),
        }
        for i, name in enumerate(cache.manifest["classes"])
    ]
    # Of several answers no one is the instance's.
    shown = bool(told) and instance.answer is not None
    return {
        "columns": list(columns),
        "classes": classes,
        "intervals": known if shown else None,
        "no_intervals": known.get("reason"),
    }


def examples(run: Run, cache: RunCache, instance: Instance) -> dict[str, Any]:
    """Label maps of a few images, ordered by the first signal, in the colours of the classes."""
    palette = run.class_table.colors
    tables, shapes = cache.tables, cache.manifest["native_shapes"]
    signal = next((signal for signal in instance.signals if signal is not None), None)
    # Stable, so that equal signals show the same images each time.
    order = None if signal is None else np.argsort(signal, kind="stable")
    # With fewer images than examples places come twice.
    places = np.unique(np.linspace(0, tables.images - 1, _EXAMPLES).round().astype(int))
    picked = places if order is None else order[places]
    image_ids = list(cache.image_fingerprints)
    maps = cache.label_maps([image_ids[index] for index in picked])
    if not maps:
        return {"reason": "The cache holds no label maps: memoise.label_maps is false."}
    # The instance's own exits come first, so that `answer` is a position here, too.
    columns = list(dict.fromkeys([*(tables.exit_ids[index] for index in instance.exits), FINAL]))
    rows = []
    for index in picked:
        answering = None if instance.answer is None else int(instance.answer[index])
        rows.append(
            {
                "image_id": image_ids[index],
                "signal": None if signal is None else float(signal[index]),
                "answering": None if answering is None else columns[answering],
                "maps": [
                    report_figures.picture(
                        decompress(maps[exit_id, image_ids[index]], shapes[exit_id]), palette
                    )
                    for exit_id in columns
                ],
            }
        )
    legend = list(zip(cache.manifest["classes"], palette, strict=False))
    return {"reason": None, "columns": columns, "rows": rows, "legend": legend}
