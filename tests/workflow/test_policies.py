"""Every policy from the cache to the bundle: the same decision in search, runtime and export."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import variation_of_information

from mess import load_bundle, workflow
from mess.common.progress import Silent
from mess.data import open_split
from mess.errors import CacheError, ConfigError, MessError
from mess.export.bundle import PlannedExit, export_bundle
from mess.runs.network import trained_network
from mess.runs.part_costs import load_costs
from mess.runs.policies import known_policies, observed_signals, policy_tables
from mess.runs.profiles import read_profile, write_profile
from mess.runs.run import Run
from mess.search.problem.costs import to_ticks
from mess.search.problem.definition import Choice, evaluate
from mess.signals.decision import leaves, threshold_between
from mess.signals.registry import PAIR_SIGNALS

pytestmark = pytest.mark.numerics

SILENT = Silent()


def middle(values: Any) -> float:
    """A threshold that some images reach and others do not, in the widest gap about the middle."""
    distinct = np.unique(np.asarray(values, dtype=np.float64))
    gaps = np.diff(distinct)
    inner = slice(len(gaps) // 4, max(len(gaps) // 4 + 1, 3 * len(gaps) // 4))
    at = int(np.argmax(gaps[inner])) + inner.start
    return threshold_between(distinct[at], distinct[at + 1])


def force(run: Run, policy: str, exits: list[str]) -> dict[str, Any]:
    """A search's result whose instance is these exits; each divides the images that reach it."""
    found = workflow.search(run.path, policy=policy, target="macs", max_error=0.5)
    cache = run.open_cache("calibration")
    tables, _ = policy_tables(cache, policy, SILENT)
    costs = load_costs(run, cache, tables, None)
    index = [tables.exit_ids.index(exit_id) for exit_id in exits]
    configuration: list[Choice] = []
    here = np.ones(len(tables.label), np.bool_)
    for depth, exit_ in enumerate(index[:-1]):
        if tables.pairs is not None and depth == 0:
            configuration.append(Choice(exit_))
            continue
        before = index[depth - 1] if depth else None
        observed = [tables.observed(exit_, k, before) for k in range(len(tables.signal_names))]
        k = int(np.argmax([len(np.unique(values[here])) for values in observed]))
        threshold = middle(observed[k][here])
        configuration.append(Choice(exit_, k, threshold))
        here &= ~leaves(observed[k], threshold)
    configuration.append(Choice(index[-1]))
    evaluation = evaluate(tables, to_ticks(tables, costs), tuple(configuration))
    path = Path(found["path"]) / "result.json"
    result = json.loads(path.read_text())
    result["exits"] = [
        {
            "exit_id": tables.exit_ids[choice.exit],
            "signal": None if choice.signal is None else tables.signal_names[choice.signal],
            "threshold": choice.threshold,
            "exit_rate": rate,
        }
        for choice, rate in zip(configuration, evaluation.exit_rates, strict=True)
    ]
    result["predicted"] |= {"miou": evaluation.miou, "macs": evaluation.costs["macs"]}
    del result["digest"]
    path.write_text(json.dumps(result))
    return result


THREE = ["p1-crm1-b0-fcn", "p2-crm2-b0-fcn", "final"]


@pytest.mark.parametrize("policy", ["share-top1-edges", "mean-top1", "ne", "vi"])
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_search_and_bundle_decide_alike(run: Run, policy: str, format: Any) -> None:
    result = force(run, policy, THREE)
    assert 0 < result["exits"][1]["exit_rate"] < 1
    bundle = workflow.export(run.path, format=format)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["policy"] == policy
    for name in manifest["histograms"]:
        assert sum(manifest["histograms"][name]["counts"]) == 40
    report = workflow.evaluate(bundle, split="calibration", trust=True)
    assert report["agreement"]["same_exit"] >= 0.999
    assert report["miou"] == pytest.approx(result["predicted"]["miou"], abs=1e-4)
    assert report["macs"] == pytest.approx(result["predicted"]["macs"], rel=1e-6)
    assert report["exit_rates"] == pytest.approx([e["exit_rate"] for e in result["exits"]])


def test_a_label_map_is_passed_on_where_the_next_exit_compares(run: Run) -> None:
    result = force(run, "vi", ["p1-crm2-b0-fcn", "p2-crm1-b1-fcn", "final"])
    assert [row["signal"] for row in result["exits"]] == [None, "vi", None]
    bundle = load_bundle(workflow.export(run.path))
    outputs = [row["outputs"] for row in bundle.manifest["exits"]]
    assert outputs[0] == ["next_features", "logits", "labels"]
    assert outputs[1] == ["next_features", "logits", "signal"]


def nearest(label: Any, size: Any) -> Any:
    rows, columns = (np.arange(size[k]) * label.shape[k] // size[k] for k in (0, 1))
    return label[np.ix_(rows, columns)]


@pytest.mark.parametrize("format_", ["onnx", "torch"])
def test_an_exit_in_the_middle_compares_and_is_compared_with(
    run: Run, tmp_path: Path, format_: Any
) -> None:
    """Four exits: label maps go from each to the next, whatever their sizes are."""
    network = trained_network(run, torch.device("cpu"))
    names = ["p1-crm1-b0-fcn", "p2-crm2-b0-fcn", "p3-crm1-b0-fcn", "final"]
    # Two exits at one point: nothing in a bundle forbids it, and the run has three points alone.
    points = [1, 2, 3, 3]
    planned = [
        PlannedExit(
            exit_id=name,
            point=point,
            macs=1.0,
            signal=PAIR_SIGNALS["vi"] if depth in (1, 2) else None,
            threshold=1.0 if depth in (1, 2) else None,
            exit_rate=0.0,
            calibration_signal=None,
        )
        for depth, (name, point) in enumerate(zip(names, points, strict=True))
    ]
    framing = run.config.data.framing
    path = export_bundle(
        network, planned, tmp_path / "bundle", framing=framing, format_=format_, facts={},
        reporter=SILENT,
    )  # fmt: skip
    bundle = load_bundle(path, trust=True)
    data = open_split(run.config.data, "calibration", run.config.seed)
    compared = []
    for image in (data.sized(i)[0] for i in range(0, len(data), 8)):
        answers = list(bundle.stream(image))
        with torch.inference_mode():
            features = network.features(torch.from_numpy(bundle.preprocess(image))[None])
            labels = [
                network.logits(name, features).argmax(1)[0].numpy()
                for name, point in zip(names, points, strict=True)
            ]
        assert answers[0].signal is None
        assert answers[3].signal is None
        for depth in (1, 2):
            before, here = labels[depth - 1], labels[depth]
            large = np.maximum(before.shape, here.shape)
            expected = sum(variation_of_information(nearest(before, large), nearest(here, large)))
            assert answers[depth].signal == pytest.approx(-expected, abs=1e-5)
            compared.append(expected)
    assert len({round(bits, 3) for bits in compared}) > 4


def test_the_exported_signals_are_the_memoised_ones(run: Run) -> None:
    """Each image's signals, by the driver, against what was memoised; at any exit that is early."""
    for policy in ("share", "ne", "mean-top1", "vi"):
        result = force(run, policy, THREE)
        expected = observed_signals(run.open_cache("calibration"), result["exits"], SILENT)
        bundle = load_bundle(workflow.export(run.path))
        config = run.config
        data = open_split(config.data, "calibration", config.seed)
        for i in range(0, len(data), 5):
            image = data.sized(i)[0]
            for depth, answer in enumerate(bundle.stream(image)):
                if depth == len(THREE) - 1 or expected[depth] is None:
                    assert answer.signal is None
                else:
                    memoised = float(np.asarray(expected[depth])[i])
                    assert answer.signal == pytest.approx(memoised, abs=1e-5)


def test_policies_restrict_the_signals(run: Run) -> None:
    cache = run.open_cache("calibration")
    tables, policy = policy_tables(cache, None, SILENT)
    assert policy == "share"
    assert set(tables.signal_names) == set(known_policies(cache.manifest)["share"])
    assert {"mean-top1", "ne"}.isdisjoint(tables.signal_names)
    every, _ = policy_tables(cache, "any", SILENT)
    assert {"mean-top1", "ne"} < set(every.signal_names)
    one, _ = policy_tables(cache, "ne", SILENT)
    column = every.signal_names.index("ne")
    np.testing.assert_array_equal(one.signals[:, :, 0], every.signals[:, :, column])


def test_a_policy_is_part_of_the_answer_and_of_what_a_front_proves(run: Run) -> None:
    first = workflow.search(run.path, policy="ne", target="macs", max_error=0.1)
    again = workflow.search(run.path, policy="ne", target="macs", max_error=0.2)
    other = workflow.search(run.path, policy="mean-top1", target="macs", max_error=0.2)
    shared = workflow.search(
        run.path, policy="ne", shared_threshold=True, target="macs", max_error=0.2
    )
    assert first["policy"] == "ne"
    assert first["id"].endswith("-ne")
    assert again["search"]["source"] == first["id"]
    assert other["search"]["source"] is None
    assert shared["search"]["source"] is None
    assert shared["constraints"]["shared_threshold"] is True


def test_the_id_of_a_search_tells_its_policy(run: Run) -> None:
    ids = {
        policy: workflow.search(run.path, policy=policy, target="macs", max_error=0.1)["id"]
        for policy in ("share", "any", "ne")
    }
    common = "input-dependent-macs-max-error-0.1"
    assert ids == {"share": common, "any": f"{common}-any", "ne": f"{common}-ne"}


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def set_signals(run: Run, *names: str) -> None:
    text = run.config_file.read_text()
    changed = re.sub(r"signals = \[[^]]*\]", f"signals = {json.dumps(names)}", text)
    assert changed != text
    run.config_file.write_text(changed)


def test_signals_that_were_not_measured_stop_only_what_asks_for_latency(run: Run) -> None:
    before = workflow.search(run.path, policy="ne", target="macs", max_error=0.1)
    assert before["predicted"]["latency_ms"] is not None
    path = run.latency("onnxruntime-1thread")
    rows, facts = read_profile(path)
    write_profile(path, [row for row in rows if not row["name"].startswith("ne@")], facts)
    heard = Heard()
    found = workflow.search(run.path, policy="ne", target="macs", max_error=0.1, reporter=heard)
    assert found["predicted"]["macs"] == before["predicted"]["macs"]
    assert found["predicted"]["latency_ms"] is None
    assert any("left out" in line and "lacks signal ne@" in line for line in heard.messages)
    asked: dict[str, Any]
    for asked in ({"target": "latency"}, {"target": "macs", "max_latency": 100.0}):
        with pytest.raises(CacheError, match=rf"mess profile --run {run.path}"):
            workflow.search(run.path, policy="ne", max_error=0.1, **asked)


def test_a_signal_that_is_not_finite_is_never_stored(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_signals.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    set_signals(run, "share", "odd_signals:Odd")
    with pytest.raises(MessError, match=r"'odd_signals:Odd' of exit 'p1-.*' on image '.*' is nan;"):
        workflow.memoise(run.path)
    set_signals(run, "share", "mean-top1", "ne")
    workflow.memoise(run.path)
    assert workflow.search(run.path, target="macs", max_error=0.1)["exits"]


ODD = """
from mess.signals import Signal


class Odd(Signal):
    kind = "odd_signals:Odd"

    def of(self, maps):
        return (maps.confidence("top1").mean((1, 2)) - 1.0).log()
"""


def test_policies_that_need_label_maps_are_told_apart_where_there_are_none(run: Run) -> None:
    run.config_file.write_text(
        run.config_file.read_text().replace("label_maps = true", "label_maps = false")
    )
    shutil.rmtree(run.cache("calibration"))
    workflow.memoise(run.path)
    found = workflow.search(run.path, policy="all", target="macs", max_error=0.1, max_exits=2)
    rows = {row["policy"]: row for row in found["policies"]}
    assert "the cache has none" in rows["vi"]["infeasible"]
    assert rows["share"]["optimal"]
    assert "the cache has none" in (Path(found["path"]) / "comparison.html").read_text()


def test_all_policies_are_compared(run: Run) -> None:
    found = workflow.search(run.path, policy="all", target="macs", max_error=0.05)
    names = [row["policy"] for row in found["policies"]]
    assert set(names) == {
        "share", "share-top1-plain", "share-top1-edges", "mean-top1", "ne", "vi", "any",
    }  # fmt: skip
    # Three exits have one threshold where the first is compared with alone.
    assert len(names) == 2 * len(set(names)) - 1
    for row in found["policies"]:
        single = json.loads((run.search(row["search"]) / "result.json").read_text())
        assert single["policy"] == row["policy"]
        assert single["predicted"] == row["predicted"]
        assert row["error"] <= 0.05
        assert -5 < row["failure_prediction"] <= 1
    costs = {row["search"]: row["predicted"]["macs"] for row in found["policies"]}
    assert costs[found["best"]] == min(costs.values())
    # Together the signals serve no worse than apart, nor own thresholds than a shared one.
    own = {
        r["policy"]: r["predicted"]["macs"] for r in found["policies"] if not r["shared_threshold"]
    }
    assert own["any"] <= min(own["share"], own["ne"], own["mean-top1"]) * (1 + 1e-9)
    folder = Path(found["path"])
    assert json.loads((folder / "comparison.json").read_text())["best"] == found["best"]
    page = (folder / "comparison.html").read_text()
    assert "figure-fronts" in page
    assert all(name in page for name in names)
    # The best is what is exported, until something else is searched.
    place = Run(run.path)
    assert found["best"] != place.searches()[-1]
    assert place.require_search(None) == found["best"]
    later = workflow.search(run.path, target="macs", max_error=0.2)
    assert place.require_search(None) == later["id"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "shares"}, r"no signals for the policy 'shares'; .*mean 'share'"),
        ({"policy": "vi", "setting": "budgeted"}, "means nothing in the budgeted setting"),
        ({"policy": "all", "setting": "budgeted"}, "in the input-dependent setting alone"),
        ({"policy": "all", "algorithm": "optuna"}, "name one policy"),
        ({"policy": "vi", "algorithm": "optuna"}, "searched in full and proven"),
        ({"shared_threshold": True, "setting": "anytime"}, "means nothing in the anytime"),
        ({"policy": "vi", "max_macs": "half"}, r"such as 0.5x, got 'half'"),
        (
            {"policy": "vi", "checkpoints": ["5"]},
            r"5.0=0.6, or early=0.6 .*got '5'",
        ),
    ],
)
def test_what_means_nothing_is_refused(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises((MessError, ConfigError), match=message):
        workflow.search(run.path, target="macs", max_error=0.05, **options)
    assert not run.searches()
    assert not (run.cache("calibration") / "pairs").exists()  # refused before comparing
