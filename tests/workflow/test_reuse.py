"""A search that an earlier one's front answers writes what a new search would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mess import workflow
from mess.cache.parquet import read_facts, read_rows, write_rows
from mess.cache.predictions.parts import read_rows_of, write_part
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import Identity
from mess.cache.schema import EXITS, FRONT
from mess.commands import search as searching
from mess.common.files import sha256, write_text
from mess.common.progress import Silent
from mess.config import Config, load_config
from mess.data import open_split
from mess.errors import InfeasibleError
from mess.runs import fronts as reuse
from mess.runs.fingerprints import pipeline_fingerprint
from mess.runs.profiles import read_profile, write_profile
from mess.runs.run import Run
from mess.signals.registry import configured_signals
from tests.caches import fill
from tests.seeds import seeded

POINTS, IMAGES, CLASSES = 3, 12, 4
SIZE = (6, 8)
FIRST = {"target": "latency", "max_error": 0.05}


def exit_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two exits a point, `final`, and one that was not trained."""
    named = [(f"p{p}-crm{c}-b0-fcn", p, c) for p in range(1, POINTS + 1) for c in (1, 2, 4)]
    rows = [
        {
            "exit_id": exit_id,
            "point": point,
            "block": f"block{point}",
            "crm": crm,
            "blocks": 0,
            "rdi": False,
            "head": "fcn",
            "exit_macs": int(rng.integers(10, 90)) * 1000,
            "backbone_macs": point * 100_000,
            "params": int(rng.integers(10, 90)),
            "backbone_params": point * 100,
            "output_stride": 8,
            "channels": 8,
            "status": "trained" if crm < 4 else "excluded: too dear",
        }
        for exit_id, point, crm in named
    ]
    nothing = dict.fromkeys(("crm", "blocks", "rdi", "head"))
    return [*rows, rows[-2] | nothing | {"exit_id": "final", "status": "trained"}]


def predictions(
    rng: np.random.Generator,
    exits: list[dict[str, Any]],
    images: list[str],
    label: np.ndarray,
    signals: int,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Deeper exits are right more often."""
    made = {}
    for row in exits:
        for image, image_id in enumerate(images):
            right = rng.random(CLASSES) ** (1 / (1 + row["point"]))
            hits = np.floor(right * label[image]).astype(int)
            made[row["exit_id"], image_id] = {
                "intersection": hits,
                "predicted": hits + rng.integers(0, 3, CLASSES),
                "agreement": 0,
                "signals": rng.random(signals),
                "label_map": None,
                "confidence_map": None,
            }
    for (_, image_id), row in made.items():
        # As few as there can be.
        fewer = made["final", image_id]["intersection"].sum() - row["intersection"].sum()
        row["lost"] = max(0, int(fewer))
    return made


def timings(
    rng: np.random.Generator, exits: list[dict[str, Any]], signals: list[str]
) -> list[dict[str, Any]]:
    prefix = rng.uniform(0.5, 1.5, POINTS).cumsum()
    at = "x".join(map(str, SIZE))
    times = {("segment", f"0-{p + 1}"): prefix[p] for p in range(POINTS)}
    for point in range(1, POINTS):
        rest = prefix[-1] - prefix[point - 1] + 0.05
        times["segment", f"{point}-{POINTS}"] = rest
    times |= {("exit", row["exit_id"]): rng.uniform(0.05, 0.5) for row in exits}
    times |= {("signal", f"{name}@{at}"): rng.uniform(0.01, 0.05) for name in signals}
    times["answer", at] = 0.1
    return [
        {
            "kind": kind,
            "name": name,
            "median_ms": float(value),
            "p90_ms": float(value),
            "min_ms": float(value),
            "rounds": 3,
        }
        for (kind, name), value in times.items()
    ]


def memoise(run: Run, config: Config, rng: np.random.Generator) -> None:
    """A complete cache of made-up predictions."""
    exits = [row for row in read_rows(run.exits, EXITS) if row["status"] == "trained"]
    signals = [spec.to_json() for spec in configured_signals(config.memoise)]
    images = open_split(config.data, "calibration", config.seed).image_fingerprints()
    label = rng.integers(5, 40, (IMAGES, CLASSES))
    identity = Identity(
        classes=tuple("abcd"),
        exits={row["exit_id"]: "made up" for row in exits},
        images=images,
        signals=tuple(signals),
        weights=sha256(run.weights),
        pipeline=pipeline_fingerprint(config),
        data="made up",
        source={"kind": "shapes", "split": "calibration", "root": None},
        label_maps=False,
        confidence_maps=(),
    )
    made = predictions(rng, exits, list(images), label, len(signals))
    fill(
        run.cache("calibration"),
        identity,
        label.tolist(),
        lambda exit_id, image_id: made[exit_id, image_id],
        size=(6, 8),
        shape=SIZE,
    )


def measure(run: Run, config: Config, name: str, seed: int) -> None:
    """A profile of made-up times."""
    exits = [row for row in read_rows(run.exits, EXITS) if row["status"] == "trained"]
    names = [spec.name for spec in configured_signals(config.memoise)]
    rows = timings(np.random.default_rng(seeded(seed)), exits, names)
    facts = {"weights": sha256(run.weights), "signals": names}
    write_profile(run.latency(name), rows, facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as training leaves it, of random numbers, with one search."""
    run = Run(tmp_path_factory.mktemp("made") / "run")
    overrides = [
        "memoise.pixel_thresholds=[0.5,0.8]",
        "memoise.edges=[false]",
        f"data.shapes=[1,{IMAGES},1]",
    ]
    config = load_config("shapes", overrides)
    write_text(run.config_file, config.to_toml())
    run.weights.write_bytes(b"weights")
    rng = np.random.default_rng(seeded(1))
    write_rows(run.exits, exit_rows(rng), EXITS)
    memoise(run, config, rng)
    measure(run, config, "onnxruntime-1thread", 2)
    measure(run, config, "other", 3)
    workflow.search(run.path, **FIRST)
    return run


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of `made`."""
    return Run(Path(shutil.copytree(made.path, tmp_path / "run")))


class Told(Silent):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


Ask = Callable[..., tuple[dict[str, Any], bool, list[str]]]


@pytest.fixture
def ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Search the run with options: the result, whether that took a search, and the messages."""
    searches = []
    search = searching.search

    def spy(*arguments: Any, **options: Any) -> Any:
        searches.append(arguments)
        return search(*arguments, **options)

    monkeypatch.setattr(searching, "search", spy)

    def asking(**options: Any) -> tuple[dict[str, Any], bool, list[str]]:
        before, told = len(searches), Told()
        result = workflow.search(run.path, reporter=told, **options)
        return result, len(searches) > before, told.messages

    return asking


def written(result: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both files of a search, but for what tells how it came about."""
    folder = Path(result["path"])
    content = json.loads((folder / "result.json").read_text())
    for name in ("seconds", "source", "evaluated", "pruned"):
        del content["search"][name]
    for name in ("digest", "front_sha256"):  # they are of how it came about, too
        del content[name]
    return content, read_rows(folder / "front.parquet", FRONT)


def anew(run: Run, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both files of a search of the run without any earlier one."""
    other = run.path.with_name("anew")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(run.path, other, ignore=shutil.ignore_patterns("searches"))
    result = workflow.search(other, **options)
    assert result["search"]["source"] is None
    return written(result)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (FIRST, {"target": "latency", "max_error": 0.02}),
        (FIRST, {"target": "latency", "max_error": 0.2, "min_miou": 0.3}),
        (FIRST, {"target": "latency", "max_error": 0.2, "max_params": 10_000.0}),
        (FIRST, {"target": "accuracy", "max_latency": 2.2}),
        (FIRST, {"target": "accuracy", "max_latency": 2.2, "min_miou": 0.2}),
        (FIRST, {"target": "accuracy"}),
        (
            {"target": "macs", "max_error": 0.05, "latency_stat": "p90"},
            {"target": "accuracy", "max_macs": "0.7x", "latency_stat": "p90"},
        ),
        (
            {"target": "accuracy", "max_latency": 2.0, "latency_stat": "p90"},
            {"target": "latency", "max_error": 0.03, "latency_stat": "p90"},
        ),
        (
            {"target": "params", "max_error": 0.9, "setting": "budgeted"},
            {"target": "params", "max_error": 0.1, "setting": "budgeted"},
        ),
        (
            {"target": "macs", "max_error": 0.9, "setting": "final-only"},
            {"target": "macs", "max_error": 0.0, "setting": "final-only"},
        ),
        (
            {"target": "latency", "max_error": 0.6, "setting": "anytime"},
            {"target": "accuracy", "max_latency": 4.0, "setting": "anytime"},
        ),
        (
            {"target": "latency", "checkpoints": ["2=0.1", "1.5=0.1"], "setting": "anytime"},
            {"target": "latency", "checkpoints": ["2=0.2", "1.5=0.05"], "setting": "anytime"},
        ),
    ],
)
def test_a_front_answers_as_a_new_search_does(
    run: Run, ask: Ask, first: dict[str, Any], later: dict[str, Any]
) -> None:
    source, _, _ = ask(**first)
    result, searched, messages = ask(**later)
    assert not searched
    assert messages == []
    assert result["search"]["source"] in run.searches()
    assert result["search"]["evaluated"] == source["search"]["evaluated"]
    assert written(result) == anew(run, **later)
    again, searched, _ = ask(**later)
    assert not searched
    assert again["search"]["source"] == result["search"]["source"]


def test_other_limits_are_searched_where_the_front_does_not_keep_them(run: Run, ask: Ask) -> None:
    free, searched, _ = ask(target="latency", max_error=0.02)
    assert not searched
    params = free["predicted"]["params"]
    kept, searched, _ = ask(target="latency", max_error=0.02, max_params=float(params))
    assert not searched
    assert kept["exits"] == free["exits"]
    asked = {"target": "latency", "max_error": 0.02, "max_params": params - 1.0}
    broken, searched, _ = ask(**asked)
    assert searched
    assert broken["predicted"]["params"] < params
    assert written(broken) == anew(run, **asked)


def test_an_infeasible_request_is_searched_for_its_message(run: Run, ask: Ask) -> None:
    for options in (
        {"target": "latency", "min_miou": 0.9999},
        {"target": "accuracy", "max_latency": 1e-3},
    ):
        with pytest.raises(InfeasibleError, match="no configuration"):
            ask(**options)
    assert run.searches() == ["input-dependent-latency-max-error-0.05"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_exits": 2},
        {"thresholds": 5},
        {"setting": "budgeted"},
        {"latency_stat": "p90"},
        {"target": "macs"},
        {"profile": "other"},
        {"setting": "anytime"},
    ],
)
def test_another_question_is_searched(ask: Ask, change: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"target": "latency", "max_error": 0.9} | change
    result, searched, messages = ask(**asked)
    assert searched
    assert messages == []
    assert result["search"]["source"] is None


def test_another_checkpoint_is_searched(ask: Ask) -> None:
    asked: dict[str, Any] = {"target": "latency", "setting": "anytime"}
    ask(**asked, checkpoints=["2=0.1"])
    assert not ask(**asked, checkpoints=["2=0.2"])[1]
    assert ask(**asked, checkpoints=["2.1=0.1"])[1]
    assert ask(**asked, checkpoints=["2=0.1", "2.1=0.1"])[1]


def change_weights(run: Run) -> None:
    """The network and what was made for it, otherwise alike."""
    run.weights.write_bytes(b"others")
    change_manifest(run, weights=sha256(run.weights))
    for path in (run.path / "latency").iterdir():
        rows, facts = read_profile(path)
        write_profile(path, rows, facts | {"weights": sha256(run.weights)})


def change_manifest(run: Run, **changes: Any) -> None:
    store = PredictionStore(run.cache("calibration"))
    store.write_manifest(store.manifest() | changes)


def change_predictions(run: Run) -> None:
    """One count, which no manifest tells."""
    (part,) = Snapshot(PredictionStore(run.cache("calibration")), None).parts()
    rows = read_rows_of(part)
    predicted = rows.predicted.copy()
    predicted[0, 0, 0] += 1
    part.path.unlink()
    write_part(
        part.path.parent, replace(rows, predicted=predicted), exits=part.exits, images=part.images
    )


def change_latency(run: Run) -> None:
    path = run.latency("onnxruntime-1thread")
    rows, facts = read_profile(path)
    rows[0]["median_ms"] += 1e-6
    write_profile(path, rows, facts)


def change_exits(run: Run, **changes: Any) -> None:
    """The first exit that was not trained, or the first that was."""
    rows = read_rows(run.exits, EXITS)
    which = "status" in changes
    at = next(i for i, row in enumerate(rows) if (row["status"] != "trained") == which)
    if which:
        del rows[at]
    else:
        rows[at] |= changes
    write_rows(run.exits, rows, EXITS)


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_predictions,
        change_latency,
        pytest.param(lambda run: change_manifest(run, data="other"), id="data"),
        pytest.param(lambda run: change_exits(run, exit_macs=17_000), id="macs"),
        pytest.param(lambda run: change_exits(run, params=17), id="params"),
        pytest.param(lambda run: change_exits(run, status="gone"), id="excluded"),
    ],
)
def test_other_inputs_are_searched(run: Run, ask: Ask, change: Callable[[Run], None]) -> None:
    change(run)
    result, searched, messages = ask(target="latency", max_error=0.02)
    assert searched
    assert messages == []
    assert result["search"]["source"] is None


def test_another_version_is_searched(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "__version__", "0.0.1")
    assert ask(target="latency", max_error=0.02)[1]


@contextmanager
def editing(path: Path) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The rows and facts of a front, to be changed in place."""
    rows, facts = read_rows(path, FRONT), read_facts(path)
    yield rows, facts
    write_rows(path, rows, FRONT, facts)


def alter_miou(path: Path) -> None:
    with editing(path) as (rows, _):
        rows[1]["miou"] += 0.01


def alter_cost(path: Path) -> None:
    with editing(path) as (rows, _):
        rows[-1]["latency_ms"] -= 0.1


def alter_threshold(path: Path) -> None:
    with editing(path) as (rows, _):
        at = next(i for i, row in enumerate(rows) if len(json.loads(row["configuration"])) > 1)
        exits = json.loads(rows[at]["configuration"])
        exits[0]["threshold"] *= 1.001
        rows[at]["configuration"] = json.dumps(exits)


def alter_proof(path: Path) -> None:
    with editing(path) as (rows, _):
        rows[0]["proven"] = False


def remove_a_row(path: Path) -> None:
    with editing(path) as (rows, _):
        del rows[len(rows) // 2]


def alter_the_count(path: Path) -> None:
    with editing(path) as (_, facts):
        facts["configurations"] += 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage",
    [alter_miou, alter_cost, alter_threshold, alter_proof, remove_a_row, alter_the_count, truncate],
)
def test_a_damaged_front_is_told_and_not_used(
    run: Run, ask: Ask, damage: Callable[[Path], None]
) -> None:
    (search_id,) = run.searches()
    damage(run.search(search_id) / "front.parquet")
    asked: dict[str, Any] = {"target": "latency", "max_error": 0.02}
    result, searched, messages = ask(**asked)
    assert searched
    assert len(messages) == 1
    assert search_id in messages[0]
    assert written(result) == anew(run, **asked)
    # The new front serves; the damaged one is passed over.
    later, searched, _ = ask(target="latency", max_error=0.03)
    assert not searched
    assert later["search"]["source"] == result["id"]


def test_a_front_that_proves_nothing_is_passed_over(run: Run, ask: Ask) -> None:
    (search_id,) = run.searches()
    path = run.search(search_id) / "front.parquet"
    rows = read_rows(path, FRONT)
    write_rows(path, rows, FRONT)
    _, searched, messages = ask(target="latency", max_error=0.02)
    assert searched
    assert messages == []
    path.unlink()
    assert not ask(target="latency", max_error=0.03)[1]


def test_what_result_json_says_is_not_relied_on(run: Run, ask: Ask) -> None:
    (search_id,) = run.searches()
    asked: dict[str, Any] = {"target": "latency", "max_error": 0.02}
    expected = anew(run, **asked)
    path = run.search(search_id) / "result.json"
    content = json.loads(path.read_text())
    content["constraints"]["max_exits"] = 1
    content["search"]["configurations"] = 7
    for text in (json.dumps(content), "{"):
        path.write_text(text)
        result, searched, _ = ask(**asked)
        assert not searched
        assert written(result) == expected


def test_the_front_of_these_tests_is_worth_reading(run: Run) -> None:
    """It has points of several kinds."""
    (search_id,) = run.searches()
    rows = read_rows(run.search(search_id) / "front.parquet", FRONT)
    assert {len(json.loads(row["configuration"])) for row in rows} >= {1, 2, 3}
    assert all(a["latency_ms"] < b["latency_ms"] for a, b in pairwise(rows))


def test_what_a_front_depends_on_is_the_same_in_another_process(run: Run) -> None:
    """An address among the values would differ from process to process."""
    code = (
        "import sys; from pathlib import Path; from mess.runs.run import Run\n"
        "from mess.runs.part_costs import load_costs\n"
        "from mess.search.problem.costs import to_ticks\n"
        "from mess.search.problem.goal import Goal\n"
        "from mess.search.problem.request import Request\n"
        "from mess.runs.fronts import dependencies\n"
        "run = Run(Path(sys.argv[1])); cache = run.open_cache('calibration')\n"
        "tables, costs = cache.tables, load_costs(run, cache, cache.tables, None)\n"
        "goal = Goal.of(tables, to_ticks(tables, costs), Request(target='macs', max_error=0.1))\n"
        "print(dependencies(goal, costs, cache.manifest, {})['tables'])\n"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    found = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)
    }
    assert len(found) == 1
