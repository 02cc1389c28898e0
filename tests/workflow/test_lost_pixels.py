"""`mess search --max-lost` on a run, and its column against really running the exits."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mess import workflow
from mess.cache.predictions.store import PredictionStore
from mess.cli import app as cli
from mess.commands.search_options import SearchOptions
from mess.common.metrics import VOID
from mess.common.normalisation import IMAGENET
from mess.data import open_split
from mess.errors import CacheError, ConfigError, DataError, MessError
from mess.exits import FINAL
from mess.runs.network import trained_network
from mess.runs.run import Run
from mess.runtime.bundle import load_bundle
from mess.search.guarantees.bounded_mean import betting_bound
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.lost_pixels import halves
from mess.sentences.new_images import new_images_lines
from tests.caches import made_before_lost
from tests.upsampling import full_size
from tests.workflow.children import forkserver
from tests.workflow.test_new_images import set_groups

TWO_EXITS: dict[str, Any] = {"target": "macs", "max_exits": 2}
LITTLE: dict[str, Any] = {"max_lost": 0.02}


def label_maps(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Really run: what every exit answers to the calibration images, and their masks."""
    config = run.config
    data = open_split(config.data, "calibration", config.seed)
    network = trained_network(run, torch.device("cpu")).eval()
    pairs = [data.sized(index) for index in range(len(data))]
    images = torch.from_numpy(np.stack([IMAGENET.apply(image) for image, _ in pairs]))
    found = {}
    with torch.inference_mode():
        features = network.features(images)
        for exit_id in (*network.exits, FINAL):
            logits = network.logits(exit_id, features)
            found[exit_id] = full_size(logits, config.data.size).argmax(1)
    return found, np.stack([mask for _, mask in pairs])


def test_the_column_is_what_running_the_exits_loses(run: Run) -> None:
    answers, mask = label_maps(run)
    tables = run.open_cache("calibration").tables
    assert tables.lost is not None
    for exit_id, lost_I in zip(tables.exit_ids, tables.lost, strict=True):
        wrong = (answers[FINAL] == mask) & (answers[exit_id] != mask) & (mask != VOID)
        np.testing.assert_array_equal(lost_I, wrong.sum((1, 2)), err_msg=exit_id)
    assert tables.lost[tables.final].max() == 0 < tables.lost.max()


def _command(words: list[str]) -> None:
    sys.argv = ["mess", *words]
    cli.main()


def test_the_command_certifies_on_the_half_that_it_did_not_search(run: Run) -> None:
    """In a process of its own; what is lost is found by running the answer's exits."""
    words = ["search", "--run", str(run.path), "--target", "macs", "--max-exits", "2"]
    words += ["--max-lost", "0.22", "--confidence", "0.9"]
    process = forkserver.Process(target=_command, args=(words,))
    process.start()
    process.join()
    assert process.exitcode == 0
    (search_id,) = run.searches()
    assert search_id.endswith("confidence-0.9-max-lost-0.22")
    result = run.result(search_id)
    assert result["constraints"]["max_lost"] == 0.22
    certificate: dict[str, Any] = result.get("certificate", {})
    assert (certificate["method"], certificate["cache"]) == ("split", "calibration")
    assert (certificate["images"], certificate["groups"], certificate["searched"]) == (20, 20, 20)
    assert certificate["limits"] == [{"max_lost": 0.22, "checkpoint": None}]
    assert certificate["margin"] is not None
    (bound,) = certificate["bounds"]

    answers, mask = label_maps(run)
    tables = run.open_cache("calibration").tables
    *early, last = result["exits"]
    answer, leaves = answers[last["exit_id"]], np.ones(40, dtype=bool)
    for row in early:
        signal = tables.signals[
            tables.exit_ids.index(row["exit_id"]), :, tables.signal_names.index(str(row["signal"]))
        ]
        assert row["threshold"] is not None
        leaves = signal >= row["threshold"]
        answer = np.where(leaves[:, None, None], answers[row["exit_id"]], answer)
    lost = ((answers[FINAL] == mask) & (answer != mask) & (mask != VOID)).sum((1, 2))
    shares = lost / (mask != VOID).sum((1, 2))
    _, certifies = halves(Groups.alone(40), run.config.seed)
    assert certificate["lost"]["value"] == pytest.approx(shares[certifies].mean(), rel=1e-12)
    assert certificate["lost"]["value"] < bound <= 0.22
    assert bound <= certificate["lost"]["hoeffding_bentkus"]
    # The order of the bets is the seed's own; of twenty it moves the bound a little.
    assert betting_bound(shares[certifies], 0.9) == pytest.approx(bound, abs=0.05)
    assert result["exits"][0]["exit_rate"] == pytest.approx(leaves.mean())


def test_the_same_command_gives_the_same_certificate_and_bundles_carry_it(run: Run) -> None:
    asked: dict[str, Any] = TWO_EXITS | {"max_lost": 0.3, "confidence": 0.9}
    found, again = (workflow.search(run.path, **asked) for _ in range(2))
    assert found["certificate"] == again["certificate"]
    bundle = load_bundle(workflow.export(run.path))
    carried = bundle.manifest.get("certificate", {})
    assert {name: carried[name] for name in found["certificate"]} == found["certificate"]
    page = workflow.report(run.path).read_text()
    assert "lost pixels at most 0.3" in page
    assert re.search(r"Certified\s+among", page)


def test_images_that_no_search_saw_certify_both_limits(run: Run) -> None:
    workflow.memoise(run.path, split="test")
    asked: dict[str, Any] = TWO_EXITS | {
        "max_lost": 0.3,
        "max_error": 0.3,
        "confidence": 0.9,
        "certify": "test",
    }
    found = workflow.search(run.path, **asked)
    certificate = found["certificate"]
    assert (certificate["method"], certificate["images"]) == ("fresh", 24)
    assert certificate["limits"] == [
        {"max_error": 0.3, "checkpoint": None},
        {"max_lost": 0.3, "checkpoint": None},
    ]
    for bound in certificate["bounds"]:
        assert bound <= 0.3
    # Asked again the images are used no further; asked something else they are.
    assert certificate["confidence_on_images"] == pytest.approx(0.9)
    assert workflow.search(run.path, **asked)["certificate"] == certificate
    asked["max_lost"] = 0.2
    other = workflow.search(run.path, **asked)
    assert other["certificate"]["confidence_on_images"] == pytest.approx(0.8)
    told = [line for line in new_images_lines(other) if "certified before" in line]
    assert told == [
        "These images have certified before: all that rests on them holds together at 80%."
    ]
    # The searched images certify nothing, under whatever name.
    workflow.memoise(run.path, name="again", split="calibration")
    with pytest.raises(DataError, match="40 images of the cache 'again' are among those"):
        asked["certify"] = "again"
        workflow.search(run.path, **asked)
    # What was refused looked at nothing.
    assert len(list((run.path / "certificates").iterdir())) == 2


def test_a_limit_that_so_few_images_cannot_certify_leaves_the_whole_network(run: Run) -> None:
    found = workflow.search(run.path, **TWO_EXITS, max_lost=0.02, confidence=0.95)
    certificate = found["certificate"]
    assert certificate["margin"] is None
    assert [row["exit_id"] for row in found["exits"]] == ["final"]
    assert (certificate["bounds"], certificate["lost"]["value"]) == ([0.0], 0.0)
    first, *_, last = new_images_lines(found)
    assert "Nothing but the whole network can be certified at 95% from 20 images" in first
    if certificate["images_needed"]:
        # A loss of nothing takes about 170 images that certify, and as many that are searched.
        assert min(offer["images"] for offer in certificate["images_needed"]) > 320
        assert "the searched half included" in last


def test_groups_are_what_is_divided(run: Run, tmp_path: Path) -> None:
    set_groups(run, "^(.*).$")
    with pytest.raises(DataError, match="40 images in 4 groups.*at least 12 groups"):
        workflow.search(run.path, **TWO_EXITS, max_lost=0.3, confidence=0.9)
    lines = [f"calibration-{number:05d},{number % 13}" for number in range(40)]
    (tmp_path / "groups.csv").write_text("\n".join(["image_id,group", *lines]))
    set_groups(run, str(tmp_path / "groups.csv"))
    found = workflow.search(run.path, **TWO_EXITS, max_lost=0.4, confidence=0.9)
    certificate = found["certificate"]
    # The bound holds for every number of groups, so that few of them make it no weaker.
    assert (certificate["groups"], certificate["strength"]) == (7, "full")
    assert certificate["images"] + certificate["searched"] == 40


def test_rare_classes_of_the_half_that_certifies_are_named(run: Run, tmp_path: Path) -> None:
    cache = run.open_cache("calibration")
    label, ids = cache.tables.label, list(cache.image_fingerprints)
    which = int(np.argmin((label > 0).sum(axis=0)))
    # Images with the class make up five groups, the others are groups of their own.
    names = [f"with-{n % 5}" if label[n, which] else name for n, name in enumerate(ids)]
    lines = [f"{name},{group}" for name, group in zip(ids, names, strict=True)]
    (tmp_path / "groups.csv").write_text("\n".join(["image_id,group", *lines]))
    set_groups(run, str(tmp_path / "groups.csv"))
    found = workflow.search(run.path, **TWO_EXITS, max_lost=0.5, confidence=0.9)
    _, certifies = halves(Groups.of(names), run.config.seed)
    rare = [
        name
        for class_, name in enumerate(cache.manifest["classes"])
        if len({names[n] for n in certifies if label[n, class_]}) < 6
    ]
    assert cache.manifest["classes"][which] in rare
    assert found["certificate"]["rare_classes"] == rare
    assert f"promise anything about: {', '.join(rare)}; the certificate counts" in " ".join(
        new_images_lines(found)
    )


def test_a_cache_from_before_lost_pixels_says_how_to_add_them(run: Run) -> None:
    store = PredictionStore(run.cache("calibration"))
    counted = store.read({})[0].lost
    before = workflow.search(run.path, **TWO_EXITS, max_error=0.1)
    made_before_lost(store)
    # All else goes on as before, earlier fronts included.
    after = workflow.search(run.path, **TWO_EXITS, max_error=0.1)
    assert (after["exits"], after["search"]["source"]) == (before["exits"], before["id"])
    assert workflow.cache_info(run.path)[0]["state"] == "ready"
    assert workflow.cache_verify(run.path)[0]["faults"] == []
    asked: dict[str, Any] = TWO_EXITS | {"max_lost": 0.3, "confidence": 0.9}
    with pytest.raises(CacheError, match="before lost pixels were counted. Run `mess memoise"):
        workflow.search(run.path, **asked)
    workflow.memoise(run.path)
    np.testing.assert_array_equal(store.read({})[0].lost, counted)
    assert workflow.search(run.path, **asked)["certificate"]["method"] == "split"
    last = workflow.search(run.path, **TWO_EXITS, max_error=0.1)
    assert last["search"]["source"] == before["id"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max_lost 0.02 is a promise of new images.*add --confidence, such as 0.95"),
        ({"max_lost": 2, "confidence": 0.9}, "between 0 and 1, got 2; did you mean 0.02"),
        ({"max_lost": 0.0, "confidence": 0.9}, "between 0 and 1, got 0"),
        ({"max_lost": 1.0, "confidence": 0.9}, "between 0 and 1, got 1"),
        ({"max_lost": float("nan"), "confidence": 0.9}, "between 0 and 1, got nan"),
        ({"confidence": 95}, "did you mean 0.95"),
        ({"expect": True}, "add --confidence"),
        ({"confidence": 0.9, "setting": "anytime"}, "in the anytime setting is the final exit's"),
        ({"confidence": 0.9, "certify": "calibration"}, "cannot certify what they chose"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((MessError, ConfigError), match=message):
        SearchOptions(**(LITTLE | options))


def test_lost_pixels_are_an_accuracy_to_keep() -> None:
    """So that neither an error nor an mIoU has to be given."""
    assert SearchOptions(target="macs", max_lost=0.02, confidence=0.9).max_lost == 0.02
    with pytest.raises(MessError, match="without an accuracy to keep"):
        SearchOptions(target="macs", confidence=0.9)


def test_accuracy_is_maximised_and_loses_no_more(run: Run) -> None:
    found = workflow.search(
        run.path, target="accuracy", max_macs="0.6x", max_exits=2, max_lost=0.5, confidence=0.9
    )
    certificate = found["certificate"]
    assert certificate["limits"] == [{"max_lost": 0.5, "checkpoint": None}]
    assert json.loads((Path(found["path"]) / "result.json").read_text())["certificate"]
