"""The report: complete, self-contained, safe, and plain about what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mess.cache.compression import compress
from mess.cache.parquet import read_rows, write_rows
from mess.cache.predictions.store import PredictionStore
from mess.cache.predictions.writer import Identity
from mess.cache.schema import EXITS, FRONT, LATENCY
from mess.common.files import sha256, write_json, write_text
from mess.common.metrics import iou
from mess.common.records import Figures
from mess.config import Config
from mess.report import figures
from mess.report.figures import Unit
from mess.report.page import write_report
from mess.runs import profiles
from mess.runs.run import Run
from mess.signals.registry import configured_signals
from tests.caches import fill

HOSTILE = "<script>alert('road')</script>"
CLASSES = ("background", HOSTILE, "sky & sea")
REASON = "excluded: channel reduction by 8 leaves 4 channels, a head needs 8"
EARLY = "p1-crm1-b1-rdi-fcn"
IMAGES, SHAPE = 12, (4, 6)
THRESHOLD = 0.5


class _Page(HTMLParser):
    """The links, texts and tags of a page; scripts are kept apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: list[str] = []
        self.scripts = 0
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _exit_row(exit_id: str, point: int, **changes: Any) -> dict[str, Any]:
    final = exit_id == "final"
    return {
        "exit_id": exit_id,
        "point": point,
        "block": f"features.{point}",
        "crm": None if final else 1,
        "blocks": None if final else 1,
        "rdi": None if final else True,
        "head": None if final else "fcn",
        "exit_macs": 2_000_000,
        "backbone_macs": 30_000_000 * point,
        "params": 5_000,
        "backbone_params": 40_000 * point,
        "output_stride": 8,
        "channels": 32,
        "status": "trained",
        **changes,
    }


@pytest.fixture
def bare(tiny: Config, tmp_path: Path) -> Run:
    """A run that has only just begun."""
    run = Run(tmp_path / "run")
    write_text(run.config_file, tiny.to_toml())
    return run


@pytest.fixture
def trained(bare: Run) -> Run:
    """A run of one early exit and an excluded candidate: trained, not memoised."""
    write_text(bare.weights, "weights")
    rows = [
        _exit_row(EARLY, 1),
        _exit_row("p1-crm8-b1-rdi-fcn", 1, status=REASON),
        _exit_row("final", 2),
    ]
    write_rows(bare.exits, rows, EXITS)
    log = [
        {"stage": "stage1", "iteration": 10, "mean": 1.5, "final": 1.5},
        {"stage": "stage1-holdout", "iteration": 20, "final": 0.4321},
        {"stage": "stage2-holdout", "iteration": 20, EARLY: 0.3456, "final": 0.4321},
    ]
    write_text(bare.metrics, "".join(json.dumps(row) + "\n" for row in log) + '{"stage": "cut')
    return bare


@pytest.fixture
def memoised(trained: Run) -> Run:
    """With a cache: the early exit confuses two classes, `final` is right everywhere."""
    known = Run(trained.path).expected_identity
    signals = tuple(signal.to_json() for signal in configured_signals(trained.config.memoise))
    identity = Identity(
        classes=CLASSES,
        exits=dict.fromkeys(known["exits"], "exit-fingerprint"),
        images={f"image-{i}": "image-fingerprint" for i in range(IMAGES)},
        signals=signals,
        weights=known["weights"],
        pipeline=known["pipeline"],
        data="data-fingerprint",
        source={"kind": "shapes", "split": "calibration", "root": None},
        label_maps=True,
        confidence_maps=(),
    )

    def predict(exit_id: str, image_id: str) -> dict[str, Any]:
        early, image = exit_id == EARLY, int(image_id.removeprefix("image-"))
        return {
            "intersection": [60, 20, 10] if early else [60, 30, 10],
            "predicted": [60, 20, 20] if early else [60, 30, 10],
            "agreement": 90 if early else 100,
            "lost": 10 if early else 0,
            "signals": [image / IMAGES] * len(signals),
            "label_map": compress(np.full(SHAPE, image % 3, np.uint8)),
            "confidence_map": None,
        }

    colors = [[3, 2, 1], [0, 0, 0], [9, 9, 9]]
    classes = [
        {"id": i, "name": name, "color": color}
        for i, (name, color) in enumerate(zip(CLASSES, colors, strict=True))
    ]
    write_json(trained.classes, {"num_classes": 3, "ignore_index": 255, "classes": classes})
    directory = trained.cache("calibration")
    fill(directory, identity, [[60, 30, 10]] * IMAGES, predict, size=(32, 48), shape=SHAPE)
    return trained


@pytest.fixture
def searched(memoised: Run) -> Run:
    """With an instance that answers half of the images early."""
    write_search(memoised, "first")
    return memoised


def write_search(run: Run, search_id: str, **changes: Any) -> None:
    manifest = PredictionStore(run.cache("calibration")).manifest()
    exits = [
        {
            "exit_id": EARLY,
            "signal": manifest["signals"][0]["name"],
            "threshold": THRESHOLD,
            "exit_rate": 0.5,
        },
        {"exit_id": "final", "signal": None, "threshold": None, "exit_rate": 0.5},
    ]
    predicted = {"miou": 0.8754, "macs": 41_000_000.0, "latency_ms": 1.234, "params": 90_000}
    baseline = {"miou": 1.0, "macs": 82_000_000.0, "latency_ms": 2.468, "params": 85_000}
    result = {
        "setting": "input-dependent",
        "target": "macs",
        "constraints": {"max_error": 0.2, "latency_stat": "mean", "max_exits": 2},
        "exits": exits,
        "predicted": predicted,
        "baseline": baseline,
        "error": 0.1246,
        "search": {
            "algorithm": "exhaustive",
            "space": {"statement": "everything"},
            "configurations": 4321,
            "evaluated": 1234,
            "optimal": True,
            "gap": 0.0,
            "seconds": 1.5,
        },
        "cache": {name: manifest[name] for name in ("weights", "data")},
        "profile": None,
        **changes,
    }
    points = [
        figures | {"configuration": "[]", "proven": True} for figures in (predicted, baseline)
    ]
    write_rows(run.search(search_id) / "front.parquet", points, FRONT)
    write_json(run.search(search_id) / "result.json", result)


def write_profile(run: Run, weights: str) -> None:
    signals = [signal.name for signal in configured_signals(run.config.memoise)]
    parts = [("segment", "0-1", 1.0), ("segment", "0-2", 2.0), ("segment", "1-2", 1.125)]
    parts += [("exit", EARLY, 0.25), ("exit", "final", 0.25), ("answer", "4x6", 0.5)]
    parts += [("signal", f"{name}@4x6", 0.0625) for name in signals]
    rows = [
        {"kind": kind, "name": name, "median_ms": ms, "p90_ms": ms, "min_ms": ms, "rounds": 7}
        for kind, name, ms in parts
    ]
    facts = {"processor": "Analytical Engine", "threads": 1, "weights": weights, "size": [32, 48]}
    profiles.write_profile(run.latency("onnxruntime-1thread"), rows, facts)


def read(run: Run) -> _Page:
    assert write_report(Run(run.path)) == run.report
    return _Page(run.report.read_text(encoding="utf-8"))


def test_headline(searched: Run) -> None:
    text = read(searched).text
    for words in ("0.50× the MACs", "0.50× the latency", "mIoU is 87.5 % against 100.0 %"):
        assert words in text
    for words in ("41.00 M", "82.00 M", "1.23 ms", "2.47 ms", "error 12.46 points", "50.0 %"):
        assert words in text
    assert "Proven optimal among 4,321 configurations (1,234 evaluated) in 1.5 s" in text


def test_gap_is_said(searched: Run) -> None:
    write_search(
        searched,
        "second",
        search={
            "algorithm": "optuna",
            "space": {},
            "configurations": 10,
            "evaluated": 10,
            "optimal": False,
            "gap": 0.0321,
            "seconds": 0.25,
        },
    )
    text = read(searched).text
    assert "Not proven optimal, gap 0.0321 among 10 configurations (10 evaluated) in 250 ms" in text
    assert "optuna" in text
    result = json.loads((searched.search("second") / "result.json").read_text())
    write_search(searched, "third", search=result["search"] | {"gap": None})
    assert "Not proven optimal, no bound known, among 10 configurations" in read(searched).text


def test_what_holds_on_new_images_is_told(searched: Run) -> None:
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    told = {
        "error": interval(0.02), "metric": "macs", "confidence": 0.95, "saving_kept": 0.8,
        "images": 240,
    }  # fmt: skip
    write_search(searched, "second", expected=told)
    text = read(searched).text
    assert "On new images like these 240 expect an error of 0.0200 (0.0100 to 0.0300)." in text
    certificate = told | {
        "method": "cross", "strength": "full", "holds": True, "groups": 240, "margin": None,
        "limits": [], "bounds": [], "least_miou": 0.5, "images_needed": [], "cost": interval(1e6),
        "uncertified": {"error": interval(0.02), "cost": interval(1e6)},
    }  # fmt: skip
    write_search(searched, "third", certificate=certificate)
    text = read(searched).text
    assert "Nothing but the whole network can be certified at 95% from 240 images" in text
    assert "The best with the certificate's margin among" in text


def test_nothing_is_loaded_from_elsewhere(searched: Run) -> None:
    html = write_report(searched).read_text(encoding="utf-8")
    page = _Page(html)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "default-src 'none'" in html
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert style
    assert "url(" not in style
    assert "@import" not in style
    assert "Plotly" in html


def test_text_is_escaped(searched: Run) -> None:
    before = read(searched).scripts
    html = searched.report.read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(" in html
    assert "sky &amp; sea" in html
    hostile_block = "</script><img src=https://example.org>"
    write_rows(
        searched.exits, [_exit_row(EARLY, 1, block=hostile_block), _exit_row("final", 2)], EXITS
    )
    page = read(searched)
    assert page.scripts == before
    assert all(link.startswith(("#", "data:image/png")) for link in page.links)
    assert hostile_block in page.text


def test_class_ious_follow_the_thresholds(searched: Run) -> None:
    text = read(searched).text
    # Signals are i / 12: images 6 to 11 leave early, exactly at the threshold included.
    counts = np.array([[60, 20, 10], [60, 20, 20]]) * 6 + np.array([[60, 30, 10]] * 2) * 6
    expected = iou(counts[0], counts[1], np.array([60, 30, 10]) * IMAGES)
    for value in expected:
        assert f"{100 * value:.1f} % 100.0 %" in text
    assert f"−{100 * (1 - expected[1]):.2f}" in text
    assert "on the 12 images of the calibration split" in text


def test_anytime_shows_what_is_delivered_when(searched: Run) -> None:
    exits = [
        {
            "exit_id": exit_id,
            "signal": None,
            "threshold": None,
            "exit_rate": 1.0,
            "delivered": {"macs": macs},
            "miou": miou,
        }
        for exit_id, macs, miou in ((EARLY, 32e6, 0.7531), ("final", 84e6, 1.0))
    ]
    checkpoints = [
        {"metric": "macs", "cost": 41e6, "required": 0.65, "miou": 0.7531},
        {"metric": "macs", "cost": None, "required": 0.5, "miou": 0.7531},
    ]
    write_search(searched, "anytime", setting="anytime", exits=exits, checkpoints=checkpoints)
    text = read(searched).text
    assert "first at mIoU 75.3 % after 0.39× the MACs" in text
    assert "41.00 M MACs 65.0 % 75.3 %" in text
    assert "an early exit, at any time 50.0 % 75.3 %" in text
    assert "In the anytime setting every exit answers" in text
    assert f"{EARLY} baseline background 60.0 % 100.0 % 100.0 %" in text


def test_exits_and_the_excluded_with_reasons(memoised: Run) -> None:
    text = read(memoised).text
    assert REASON in text
    assert "Not trained: 1 of 3 candidates" in text
    assert f"{EARLY} features.1 72.2 % 2.0 32.0 5.0 –" in text
    write_profile(memoised, sha256(memoised.weights))
    text = read(memoised).text
    assert f"{EARLY} features.1 72.2 % 2.0 32.0 5.0 1.75" in text
    assert "Analytical Engine" in text
    assert "32 × 48" in text


def test_stale_parts_are_said(searched: Run) -> None:
    write_profile(searched, "other weights")
    assert "Measured for other weights. Run mess profile again." in read(searched).text
    write_search(searched, "stale", cache={"weights": "other", "data": "data-fingerprint"})
    text = read(searched).text
    assert "ran on other weights or calibration data" in text
    assert "The newest search is of other weights or data." in text


def test_bare_run_says_what_is_missing(bare: Run) -> None:
    page = read(bare)
    for words in ("Run mess search", "has no trained network yet", "Run mess profile"):
        assert words in page.text
    assert "width = 0.25" in page.text
    assert page.scripts == 0


def test_trained_run_without_a_cache(trained: Run) -> None:
    text = read(trained).text
    assert "holds no predictions yet. Run mess memoise --run " in text
    assert f"{EARLY} features.1 –" in text
    assert "stage2 20 43.2 % 34.6 % 34.6 %" in text


def test_examples_are_label_maps_in_the_colours_of_the_classes(searched: Run) -> None:
    page = read(searched)
    pictures = [link for link in page.links if link.startswith("data:image/png")]
    assert len(pictures) == 4 * 2
    assert "signal 0.000" in page.text
    assert "signal 0.917" in page.text
    assert "rgb(3,2,1)" in searched.report.read_text()


Damage = Callable[[Run], object]


def spoil(name: str, content: bytes) -> Damage:
    def damage(run: Run) -> None:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(content)

    return damage


def without_facts(run: Run) -> None:
    path = run.latency("onnxruntime-1thread")
    write_rows(path, read_rows(path, LATENCY), LATENCY)


def with_facts(facts: Any) -> Damage:
    def damage(run: Run) -> None:
        path = run.latency("onnxruntime-1thread")
        if isinstance(facts, dict):
            profiles.write_profile(path, read_rows(path, LATENCY), facts)
        else:
            write_rows(path, read_rows(path, LATENCY), LATENCY, facts)

    return damage


def other_exit(run: Run) -> None:
    exits = [{"exit_id": "p9-gone", "signal": None, "threshold": None, "exit_rate": 1.0}]
    write_search(run, "second", exits=exits)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (spoil("exports/second/manifest.json", b""), "signal 0.917"),
        (spoil("exports/second/manifest.json", b"[]"), "signal 0.917"),
        (spoil("classes.json", b"{"), "classes.json"),
        (spoil("exits.parquet", b""), "exits.parquet is damaged"),
        (spoil("latency/onnxruntime-1thread.parquet", b""), "1thread.parquet is damaged"),
        (without_facts, "was altered, or an earlier version"),
        (with_facts([1]), "facts that are no JSON object"),
        (with_facts({"size": None, "more": {"a": 1}}), "more a"),
        (lambda run: write_search(run, "second", setting="odd"), "unknown setting 'odd'"),
        (other_exit, "chose 'p9-gone', which the cache 'calibration' does not have"),
        (
            spoil("metrics.jsonl", b'null\n}{\n{"stage": "a", "iteration": 1, "mean": null}\n'),
            "No images are held out",
        ),
        (spoil("metrics.jsonl", b"\xff\n"), "No images are held out"),
        (spoil("config.toml", b"# caf\xe9\n"), "is not UTF-8 text"),
    ],
)
def test_one_bad_file_costs_its_own_section_alone(searched: Run, damage: Damage, told: str) -> None:
    write_profile(searched, sha256(searched.weights))
    damage(searched)
    text = read(searched).text
    assert told in text
    assert "search, newest first" in text
    assert "Configuration" in text


def test_an_exit_whose_rate_is_not_known_is_shown_without(searched: Run) -> None:
    result = json.loads((searched.search("first") / "result.json").read_text())
    exits = [exit_ | {"exit_rate": None} for exit_ in result["exits"]]
    write_search(searched, "second", exits=exits)
    assert f"{EARLY} {result['exits'][0]['signal']} 0.5000 –" in read(searched).text


def test_what_a_search_is_against_is_text(searched: Run) -> None:
    manifest = PredictionStore(searched.cache("calibration")).manifest()
    source = {name: manifest[name] for name in ("weights", "data")}
    hostile = '"><img src=https://example.org>'
    before = read(searched).scripts
    write_search(searched, "second", cache=source | {"labels": hostile})
    page = read(searched)
    # One more figure, and nothing else.
    assert page.scripts == before + 1
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert hostile in page.text
    drawn = figures.fronts([], searched_figures(), Unit.of(1e6), hostile)
    assert hostile not in drawn.replace("\\u003c", "<").replace("\\u003e", ">")


def searched_figures() -> Figures:
    return {"miou": 1.0, "macs": 1e6, "latency_ms": None, "params": 1.0}


def test_classes_of_one_name_have_each_their_own_interval(searched: Run) -> None:
    def row(name: str, low: float) -> dict[str, Any]:
        ends = {"value": low, "low": low, "high": low + 0.01}
        return {"class": name, "groups": 12, "iou": ends, "baseline": ends, "error": ends}

    told = {
        "confidence": 0.95, "images": 12, "groups": 12, "strength": "full", "reason": None,
        "rare": [], "classes": [row("same", low) for low in (0.111, 0.222, 0.333)],
    }  # fmt: skip
    write_search(searched, "second", intervals=told)
    text = read(searched).text
    for ends in ("11.1 % to 12.1 %", "22.2 % to 23.2 %", "33.3 % to 34.3 %"):
        assert ends in text
