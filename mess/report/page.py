"""The report: one self-contained HTML file about a run.

Every section stands on its own: where its data is missing, it says so and names the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from mess import __version__
from mess.common.files import write_text
from mess.common.metrics import MASKS, mean_iou
from mess.common.records import read_log
from mess.errors import ConfigError, MessError
from mess.exits import FINAL
from mess.report import figures as report_figures
from mess.report.figures import FrontLine, Unit
from mess.report.instance import examples, instance_of, path_latencies, thresholds
from mess.report.templates import templates
from mess.runs.cache import RunCache
from mess.runs.part_costs import DEFAULT_PROFILE
from mess.runs.profiles import read_profile
from mess.runs.results import CALIBRATION, SearchResult, cache_of, is_of_cache
from mess.runs.run import Run
from mess.search.problem.settings import find_setting
from mess.sentences.accuracy import against, labels_of
from mess.sentences.adoption import adoption_lines
from mess.sentences.new_images import new_images_lines

_TEMPLATE = "report.html.jinja"
_T = TypeVar("_T")


class _Search(NamedTuple):
    id: str
    result: SearchResult
    front: Sequence[Mapping[str, Any]]
    no_front: str | None
    """Why there is none."""

    @property
    def every_exit_answers(self) -> bool:
        """Whether the instance gives several answers, one after the other."""
        return find_setting(self.result["setting"]).every_exit_answers


def write_report(run: Run) -> Path:
    """Write RUN/report.html and return its path.

    Parts of the run that are missing or stale are named in the page; nothing is measured anew.
    """
    found = [_attempt(lambda s=s: _search(run, s)) for s in reversed(run.searches())]
    searches = [search for search, _ in found if search]
    newest = searches[0] if searches else None
    result = newest.result if newest else None
    weights = run.weights_sha256 if run.weights.exists() else None
    cache, no_cache = _attempt(lambda: _opened(run, result))
    labels = labels_of(result) if result else MASKS
    name = cache_of(result) if result else CALIBRATION
    where = "the calibration split" if name == CALIBRATION else f"the cache {name}"
    candidates, no_candidates = _attempt(lambda: _candidates(run, cache, result, labels, where))
    stale, instance, no_instance = False, None, no_cache
    routed, shown = None, None
    if cache and result:
        stale = not is_of_cache(result["cache"], cache.manifest)
        if not stale:
            instance, no_instance = _attempt(lambda: instance_of(cache, result))
        if instance:
            routed, no_instance = _attempt(lambda: thresholds(cache, instance))
            shown, no_examples = _attempt(lambda: examples(run, cache, instance))
            shown = shown or {"reason": no_examples}
    page: dict[str, Any] = {
        "name": run.path.resolve().name,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "newest": newest,
        "promised": new_images_lines(dict(result)) if result else [],
        "stale": stale,
        "no_cache": no_cache,
        "labels": labels,
        "where": where,
        "candidates": candidates,
        "no_candidates": no_candidates or no_cache,
        "searches": _by_labels(searches),
        "refused": [reason for _, reason in found if reason],
        "thresholds": routed,
        "no_thresholds": no_instance,
        "adopted": _adopted(run),
        "training": _training(run),
        "profiles": _profiles(run, weights),
        "examples": shown,
        # To be looked at, also where nothing else can be made of it.
        "config": run.config_file.read_text(encoding="utf-8", errors="replace"),
        "fingerprints": {
            "weights (sha256)": weights,
            "calibration data": cache.manifest["data"] if cache else None,
        },
    }
    parts = (page["candidates"], page["thresholds"], page["training"])
    figures = [part["figure"] for part in (*parts, *page["searches"]) if part]
    # Within the page, so that it opens without a network; 4.8 MB that a page without figures saves.
    page["plotly"] = Markup(get_plotlyjs()) if any(figures) else None
    write_text(run.report, _render(page))
    return run.report


def _render(page: dict[str, Any]) -> str:
    """The template with the parts of `page`; undefined names raise, text is escaped."""
    environment = templates()
    environment.filters |= {
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f} %",
        "count": _count,
        "ms": lambda value: "–" if value is None else f"{value:.2f}",
        "points": lambda value: f"{100 * value:+.2f}".replace("-", "−"),
        "seconds": lambda value: f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms",
        "limit": lambda value: _count(value) if isinstance(value, float) and value > 1e3 else value,
        "code": _code,
    }
    return environment.get_template(_TEMPLATE).render(page)


def _attempt(read: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """What `read` returns, or the reason why there is nothing."""
    try:
        return read(), None
    except MessError as error:
        return None, str(error)


def _opened(run: Run, result: SearchResult | None) -> RunCache:
    """The cache that was searched, or that of the calibration split, read."""
    cache = run.open_cache(cache_of(result) if result else CALIBRATION)
    # Read here, within `_attempt`: what is damaged is told in the page instead of raised later.
    _ = cache.tables
    return cache


def _search(run: Run, search_id: str) -> _Search:
    result = run.result(search_id)
    try:
        find_setting(result["setting"])
    except ConfigError as error:
        raise MessError(f"{run.search(search_id)}: {error}") from error
    front, no_front = _attempt(lambda: run.front(search_id, result))
    return _Search(search_id, result, front or [], no_front)


def _candidates(
    run: Run, cache: RunCache | None, result: SearchResult | None, labels: str, where: str
) -> dict[str, Any] | None:
    """Every exit with its figures, the excluded ones with the reason."""
    if not run.exits.exists():
        return None
    rows = run.candidate_rows
    miou: dict[str, float] = {}
    latency_ms: dict[str, float] = {}
    if cache is not None:
        tables, latency_ms = cache.tables, path_latencies(run, cache, result)
        values = mean_iou(tables.intersection.sum(1), tables.predicted.sum(1), tables.label.sum(0))
        miou = dict(zip(tables.exit_ids, np.atleast_1d(values).tolist(), strict=True))
    chosen = {row["exit_id"] for row in result["exits"]} if result else set()
    known = [
        {
            **row,
            "path_macs": row["backbone_macs"] + row["exit_macs"],
            "miou": miou.get(row["exit_id"]),
            "latency_ms": latency_ms.get(row["exit_id"]),
            "chosen": row["exit_id"] in chosen,
        }
        for row in rows
        if row["status"] == "trained"
    ]
    unit = Unit.of(max((row["path_macs"] for row in known), default=0))
    drawn, named = [row for row in known if row["miou"] is not None], against("mIoU", labels)
    return {
        "rows": known,
        "excluded": [row for row in rows if row["status"] != "trained"],
        "macs": unit,
        "params": Unit.of(max((row["params"] for row in known), default=0)),
        "figure": Markup(report_figures.candidates(drawn, unit, named, where)) if drawn else None,
    }


def _by_labels(searches: Sequence[_Search]) -> list[dict[str, Any]]:
    """Searches with the figure of their fronts, apart by what they are measured against.

    In one figure they would seem to compare.
    """
    groups: dict[str, list[_Search]] = {}
    for search in searches:
        groups.setdefault(labels_of(search.result), []).append(search)
    return [
        {"labels": labels, "rows": some, "figure": _fronts(some, labels, number)}
        for number, (labels, some) in enumerate(groups.items(), start=1)
    ]


def _fronts(searches: Sequence[_Search], labels: str, number: int) -> Markup:
    lines = [
        FrontLine(
            name=search.id,
            # With checkpoints a front counts their mean, no mIoU of an answer.
            points=[] if search.every_exit_answers else search.front,
            predicted=search.result["predicted"],
        )
        for search in searches
    ]
    baseline, miou = searches[0].result["baseline"], against("mIoU", labels)
    unit, name = Unit.of(baseline["macs"]), f"figure-fronts-{number}"
    return Markup(report_figures.fronts(lines, baseline, unit, miou, name))


def _adopted(run: Run) -> list[str]:
    """What is told of the network that the run began with; nothing where it adopted none."""
    found, reason = _attempt(lambda: run.adoption)
    return adoption_lines(found) if found else [reason] if reason else []


def _training(run: Run) -> dict[str, Any] | None:
    if not run.metrics.exists():
        return None
    stages: dict[str, list[tuple[int, float]]] = {}
    held_out: dict[str, dict[str, Any]] = {}
    for row in read_log(run.metrics):
        if "mean" in row:
            stages.setdefault(row["stage"], []).append((row["iteration"], row["mean"]))
        elif FINAL in row:
            early = [row[key] for key in row if key not in ("stage", "iteration", FINAL)]
            held_out[row["stage"].removesuffix("-holdout")] = {
                "iteration": row["iteration"],
                "final": row[FINAL],
                "best": max(early, default=None),
                "worst": min(early, default=None),
            }
    figure = Markup(report_figures.losses(stages)) if stages else None
    return {"figure": figure, "held_out": held_out}


def _profiles(run: Run, weights: str | None) -> list[dict[str, Any]]:
    """The default profile first."""
    profiles = []
    for name in sorted(run.profiles(), key=lambda name: name != DEFAULT_PROFILE):
        found, reason = _attempt(lambda name=name: _profile(run.latency(name)))
        kinds, facts = found or ({}, {})
        stale = facts.pop("weights", weights) != weights
        profiles.append(
            {"name": name, "facts": facts, "kinds": kinds, "reason": reason, "stale": stale}
        )
    return profiles


def _profile(file: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Rows by kind, and the facts."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    rows, facts = read_profile(file)
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    return kinds, facts


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:,.{1 if value >= 100 * scale else 2}f} {suffix}"
    return f"{value:g}"


def _code(text: str) -> Markup:
    """`text` with what stands in backticks set as code."""
    # Escaped first: what comes from files and names is text, and only these tags are markup.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
