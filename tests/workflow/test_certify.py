"""`mess certify`: bundles run on images that chose nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mess.commands.certify
from mess import load_bundle, workflow
from mess.cli.app import main
from mess.common.files import write_text
from mess.common.progress import Silent
from mess.common.records import with_digest
from mess.config import load_config
from mess.errors import BundleError, ConfigError, DataError, MessError
from mess.runs.run import Run
from mess.runtime.bundle_run import run_in_turns
from mess.search.guarantees.claims import counts_of
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.sampling_error import error_estimate
from mess.sentences.certificates import certified_lines
from tests.keys import write_keys
from tests.workflow.videos import write_video

SEARCH: dict[str, Any] = {"target": "macs", "max_exits": 2, "max_error": 0.3}


def test_a_bundle_is_certified_by_running_it(
    run: Run, searched: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its figures are those of the memoised test images; and its manifest carries them."""
    bundle = searched(**SEARCH)
    found = workflow.certify([bundle], confidence=0.9, max_error=0.99)
    (told,) = found["tested"]
    assert (told["holds"], told["groups"], told["method"]) == (True, 24, "run")
    assert told["limits"] == [{"max_error": 0.99, "checkpoint": None}]
    assert told["error"]["low"] <= told["error"]["value"] < told["bounds"][0] <= 0.99
    carried = json.loads((bundle / "manifest.json").read_text())["certificate"]
    of_bundle = {"bundle": load_bundle(bundle).digest, "digest": carried["digest"]}
    assert carried == told | {"confidence_together": 0.9} | of_bundle
    # It still runs, and its certificate is none of what is hashed.
    assert workflow.evaluate(bundle)["error"] == pytest.approx(told["error"]["value"])
    monkeypatch.setattr("sys.argv", ["mess", "certify", str(bundle), "--max-error", "0.99"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Certified at 95%: error at most" in said
    assert "These images have certified before" in said
    assert "holds together at 85%" in said


def test_its_bound_is_that_of_the_memoised_images(run: Run, searched: Callable[..., Path]) -> None:
    """The cache's answer against running the instance, count by count."""
    bundle = searched(**SEARCH)
    (told,) = workflow.certify([bundle], max_error=0.99)["tested"]
    workflow.memoise(run.path, split="test")
    cache = run.open_cache("test")
    exits = json.loads((bundle / "manifest.json").read_text())["exits"]
    tables = cache.tables
    answer = np.zeros(tables.images, dtype=np.intp)
    left = np.zeros(tables.images, dtype=bool)
    for exit_ in exits:
        index = tables.exit_ids.index(exit_["exit_id"])
        leaves = np.ones(tables.images, dtype=bool)
        if exit_["signal"]:
            signal = tables.signal_names.index(exit_["signal"]["name"])
            leaves = tables.signals[index, :, signal] >= exit_["threshold"]
        answer[leaves & ~left] = index
        left |= leaves
    everything = np.arange(tables.images)
    expected = error_estimate(
        counts_of(tables, np.full(tables.images, tables.final), everything),
        counts_of(tables, answer, everything),
        Groups.alone(tables.images),
    )
    assert told["bounds"] == [pytest.approx(expected.upper(0.95), abs=1e-3)]


def test_limits_are_those_of_the_search(searched: Callable[..., Path]) -> None:
    bundle = searched(**SEARCH)
    (told,) = workflow.certify([bundle])["tested"]
    assert told["limits"] == [{"max_error": 0.3, "checkpoint": None}]


def test_a_run_that_holds_no_image_out_certifies(run: Run, searched: Callable[..., Path]) -> None:
    bundle = searched(**SEARCH)
    write_text(run.config_file, load_config(run.config_file, ["data.holdout=0.0"]).to_toml())
    (told,) = workflow.certify([bundle], max_error=0.99)["tested"]
    assert told["holds"]


def test_drawn_images_have_no_folder(
    run: Run, searched: Callable[..., Path], tmp_path: Path
) -> None:
    """What is refused is called as this command calls it."""
    bundle = searched(**SEARCH)
    drawn = load_config(run.config_file, ["data.kind=shapes"])
    write_text(run.config_file, drawn.to_toml())
    with pytest.raises(MessError, match=f"so --data {tmp_path} means nothing"):
        workflow.certify([bundle], root=tmp_path)


def test_what_fails_ends_the_order(
    searched: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """And its manifest says that it does not hold."""
    bundle = searched(**SEARCH)
    second = bundle.with_name("second")
    second.symlink_to(bundle)
    words = ["certify", str(bundle), str(second), "--min-miou", "0.999", "--json"]
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert [told["holds"] for told in found["tested"]] == [False]
    assert json.loads((bundle / "manifest.json").read_text())["certificate"]["holds"] is False


def test_images_that_are_nearly_the_searched_ones_are_warned_of(
    run: Run, searched: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = searched(**SEARCH)
    write_video(run, tmp_path / "video", frames=2)
    found = workflow.certify([bundle], root=tmp_path / "video", split="calibration", max_error=0.9)
    near = found["near_searched"]
    assert (near["images"], near["pair"]) == (20, ["scene0_0", "calibration-00000"])
    within = found["near_identical"]
    assert (within["images"], within["pair"]) == (20, ["scene0_0", "scene0_1"])
    said = certified_lines(found)
    assert any("20 of 20 images are nearly identical to one that was searched" in s for s in said)


class Told(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_plan_is_carried_out_once(run: Run, searched: Callable[..., Path]) -> None:
    bundle, told = searched(**SEARCH), Told()
    first = workflow.certify([bundle], max_error=0.9)
    assert workflow.certify([bundle], max_error=0.9, reporter=told) == first
    assert any("Carried out before" in message for message in told.messages)
    assert len(list((run.path / "certificates").iterdir())) == 1


def test_a_certificate_that_was_altered_is_refused(searched: Callable[..., Path]) -> None:
    bundle = searched(**SEARCH)
    found = workflow.certify([bundle], max_error=0.9)
    path = Path(found["path"]) / "result.json"
    content = json.loads(path.read_text())
    content["tested"][0]["bounds"][0] /= 2
    path.write_text(json.dumps(content))
    with pytest.raises(MessError, match=r"result\.json was altered.*Remove it and certify again"):
        workflow.certify([bundle], max_error=0.9)
    # The next move mends it, and the bundle with its certificate is whole.
    path.unlink()
    again = workflow.certify([bundle], max_error=0.9)
    assert again["tested"][0]["bounds"] == found["tested"][0]["bounds"]
    assert load_bundle(bundle).facts.get("certificate", {})["plan"] == found["plan"]


def test_a_certificate_of_another_plan_is_refused(searched: Callable[..., Path]) -> None:
    bundle = searched(**SEARCH)
    loose, strict = (workflow.certify([bundle], max_error=limit) for limit in (0.9, 0.8))
    copied = Path(strict["path"]) / "result.json"
    shutil.copy(Path(loose["path"]) / "result.json", copied)
    with pytest.raises(MessError, match=r"result\.json is of another plan.*Remove it and certify"):
        workflow.certify([bundle], max_error=0.8)
    # Nor is one believed whose digest is taken away.
    content = json.loads(copied.read_text()) | {"plan": strict["plan"]}
    del content["digest"]
    copied.write_text(json.dumps(content))
    with pytest.raises(MessError, match=r"result\.json lacks digest"):
        workflow.certify([bundle], max_error=0.8)


def test_images_that_chose_certify_nothing(searched: Callable[..., Path]) -> None:
    bundle = searched(**SEARCH)
    with pytest.raises(DataError, match="40 of the 40 images of .* were searched for"):
        workflow.certify([bundle], split="calibration")
    with pytest.raises(DataError, match="were trained on"):
        workflow.certify([bundle], split="train")
    # Refused before anything was planned: nothing is spent.
    assert not (bundle.parent.parent / "certificates").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"confidence": 95}, ConfigError, "did you mean 0.95"),
        ({"confidence": 0.5}, ConfigError, "between 0.5 and 1"),
        ({"max_error": 1.5}, MessError, "max_error = 1.5 is no limit"),
        ({"min_miou": -0.1}, MessError, "min_miou = -0.1 is no limit"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    options: dict[str, Any], error: type[MessError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        workflow.certify([tmp_path], run=None, **options)


def test_a_search_without_a_limit_names_the_option(searched: Callable[..., Path]) -> None:
    bundle = searched(target="accuracy", max_macs="0.9x", max_exits=2)
    with pytest.raises(MessError, match="give --max-error"):
        workflow.certify([bundle])


def test_images_that_chose_what_was_certified_certify_it_no_more(run: Run) -> None:
    workflow.memoise(run.path, split="test")
    workflow.search(run.path, **SEARCH, confidence=0.9, certify="test")
    bundle = workflow.export(run.path)
    with pytest.raises(DataError, match="24 of the 24 images of .* were used to choose what was"):
        workflow.certify([bundle])


def test_a_bundle_exported_again_has_its_certificate_again(
    run: Run, searched: Callable[..., Path]
) -> None:
    bundle = searched(**SEARCH)
    workflow.certify([bundle], max_error=0.99)
    workflow.export(run.path, output=bundle)
    assert "certificate" not in json.loads((bundle / "manifest.json").read_text())
    workflow.certify([bundle], max_error=0.99)
    assert "certificate" in json.loads((bundle / "manifest.json").read_text())


def test_a_signed_bundle_is_to_be_signed_again(
    searched: Callable[..., Path], tmp_path: Path
) -> None:
    """Where it has another certificate than the one that was signed with it."""
    bundle, (private, public), told = searched(**SEARCH), write_keys(tmp_path / "keys"), Told()
    workflow.sign(bundle, private)
    load_bundle(bundle, public_key=public)
    workflow.certify([bundle], max_error=0.99, reporter=told)
    assert any("was signed without this certificate" in message for message in told.messages)
    with pytest.raises(BundleError, match="is not signed"):
        load_bundle(bundle, public_key=public)
    found = workflow.sign(bundle, private)
    assert found["signed"]
    assert found["certificate"]["holds"] is True
    # The same certificate is not written again.
    workflow.certify([bundle], max_error=0.99)
    assert workflow.verify(bundle, public_key=public)["signed_by"] == str(public)


def test_a_bundle_exported_while_it_is_certified_is_left_alone(
    run: Run, searched: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = searched(**SEARCH)

    def run_meanwhile(*arguments: Any) -> None:
        run_in_turns(*arguments)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["exits"][0]["exit_rate"] = 0.123
        write_text(bundle / "manifest.json", json.dumps(with_digest(manifest)))

    monkeypatch.setattr(mess.commands.certify, "run_in_turns", run_meanwhile)
    with pytest.raises(MessError, match="was exported again while it was certified"):
        workflow.certify([bundle], max_error=0.99)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["exits"][0]["exit_rate"] == 0.123
    assert "certificate" not in manifest
