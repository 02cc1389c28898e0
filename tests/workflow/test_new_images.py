"""`mess search --confidence` and `--expect` on a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

import mess.commands.new_images
from mess import workflow
from mess.cache.content import find_parts
from mess.cache.parquet import read_rows, write_rows
from mess.cache.predictions.store import PredictionStore
from mess.cache.schema import IMAGES
from mess.cli.app import main
from mess.cli.tables import print_policies
from mess.commands.fresh_images import require_untrained
from mess.commands.search import search_run
from mess.commands.search_options import SearchOptions
from mess.common.files import sha256, write_text
from mess.common.progress import Silent
from mess.config import load_config
from mess.errors import CacheError, ConfigError, DataError, MessError
from mess.runs.run import Run
from mess.search.exact.workers import Team
from mess.search.guarantees import certify
from mess.sentences.new_images import new_images_lines
from tests.workflow.videos import write_video

TWO_EXITS: dict[str, Any] = {"target": "macs", "max_exits": 2}


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


def set_groups(run: Run, spec: str) -> None:
    overrides = [f"data.groups={json.dumps(spec)}"]
    write_text(run.config_file, load_config(run.config_file, overrides).to_toml())


def test_the_answer_is_the_searchs_with_the_margin(run: Run) -> None:
    """And its bound is within the limit, on images that did not choose it."""
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9)
    certificate = found["certificate"]
    (limit,), (bound,) = certificate["limits"], certificate["bounds"]
    assert (limit, certificate["holds"]) == ({"max_error": 0.2, "checkpoint": None}, True)
    assert certificate["error"]["value"] < bound <= 0.2
    assert (certificate["images"], certificate["groups"], certificate["folds"]) == (40, 40, 5)
    assert certificate["strength"] == "full"
    assert certificate["margin"] is not None
    inner = 0.2 - certificate["margin"]
    again = workflow.search(run.path, **TWO_EXITS, max_error=max(0.0, inner))
    if inner >= 0:
        assert found["exits"] == again["exits"]
    assert found["error"] <= inner
    assert json.loads((Path(found["path"]) / "result.json").read_text())["certificate"]
    # The same command gives the same certificate.
    once_more = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9)
    assert once_more["certificate"] == certificate


def test_images_that_no_search_saw_certify(run: Run) -> None:
    workflow.memoise(run.path, split="test")
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, certify="test")
    certificate = found["certificate"]
    assert (certificate["method"], certificate["cache"]) == ("fresh", "test")
    assert (certificate["images"], certificate["folds"]) == (24, None)
    assert certificate["bounds"][0] <= 0.2


def test_images_that_were_searched_certify_nothing(run: Run) -> None:
    with pytest.raises(MessError, match="cannot certify what they chose"):
        SearchOptions(max_error=0.1, confidence=0.9, certify="calibration")
    workflow.memoise(run.path, name="again", split="calibration")
    with pytest.raises(DataError, match="40 images of the cache 'again' are among those"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, certify="again")


def test_images_that_were_trained_on_certify_nothing(run: Run) -> None:
    workflow.memoise(run.path, split="train")
    with pytest.raises(DataError, match="split 'train', on which the network was trained"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, certify="train")
    # Nor do they where they are searched, and the same images under another name.
    ways: list[dict[str, Any]] = [
        {"confidence": 0.9}, {"expect": True}, {"confidence": 0.9, "max_lost": 0.5}
    ]  # fmt: skip
    for asked in ways:
        with pytest.raises(DataError, match="split 'train', on which the network was trained"):
            workflow.search(run.path, **TWO_EXITS | asked, max_error=0.2, cache="train")


def test_training_images_are_known_wherever_they_lie(run: Run, tmp_path: Path) -> None:
    root = run.config.data.root
    assert root is not None
    (tmp_path / "link").symlink_to(root)
    workflow.memoise(run.path, root=tmp_path / "link", split="train", name="link")
    with pytest.raises(DataError, match="cache 'link' are of the split 'train'"):
        require_untrained(run, "link", Silent())
    # In another data set, and there in another split.
    elsewhere = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    for kind in ("images", "masks"):
        shutil.rmtree(elsewhere / "test" / kind)
        shutil.copytree(root / "train" / kind, elsewhere / "test" / kind)
    workflow.memoise(run.path, root=elsewhere, split="test", name="copies")
    with pytest.raises(DataError, match="images of the cache 'copies', such as .* are equal to"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, certify="copies")


def test_where_training_images_are_gone_it_is_said(run: Run, tmp_path: Path) -> None:
    listener = Listener()
    require_untrained(run, "calibration", listener)
    assert not listener.told
    gone = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"root": tmp_path / "gone"})}
    )
    write_text(run.config_file, gone.to_toml())
    require_untrained(Run(run.path), "calibration", listener)
    (told,) = listener.told
    assert "cache 'calibration' were trained on, too, cannot be told" in told


def test_a_promise_that_cannot_be_kept_is_answered_with_the_whole_network(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is said."""
    words = ["search", "--run", str(run.path), "--target", "macs", "--max-exits", "2"]
    words += ["--max-error", "0", "--confidence", "0.999"]
    monkeypatch.setattr("sys.argv", ["mess", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing but the whole network can be certified at 99.9% from 40 images" in told
    result = run.result(run.searches()[-1])
    assert result.get("certificate", {})["margin"] is None
    assert [row["exit_id"] for row in result["exits"]] == ["final"]


def test_groups_decide_how_much_images_tell(run: Run, tmp_path: Path) -> None:
    """Ids are calibration-00000 and so on: the regular expression takes all but the last digit."""
    set_groups(run, "^(.*).$")
    with pytest.raises(DataError, match="40 images in 4 groups are too few"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9)
    ids = [f"calibration-{number:05d}" for number in range(40)]
    lines = [f"{name},{number % 10}" for number, name in enumerate(ids)]
    (tmp_path / "groups.csv").write_text("\n".join(["image_id,group", *lines]))
    set_groups(run, str(tmp_path / "groups.csv"))
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.3, confidence=0.9)
    certificate = found["certificate"]
    assert (certificate["strength"], certificate["groups"]) == ("weak", 10)
    assert any("10 groups tell little about others" in line for line in new_images_lines(found))
    # What nothing is promised of is searched all the same.
    set_groups(run, "^(.*).$")
    assert workflow.search(run.path, **TWO_EXITS, max_error=0.2)["exits"]


def test_copies_of_a_file_count_once_however_its_signals_round(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch of another size a copy may differ in a last digit, and then no table tells."""
    root = Path(shutil.copytree(str(run.config.data.root), tmp_path / "images"))
    for kind in ("images", "masks"):
        folder = root / "val" / kind
        for number in range(2):
            shutil.copyfile(folder / f"calibration-{number:05d}.png", folder / f"more-{number}.png")
    workflow.memoise(run.path, split="calibration", root=root, name="copies")
    monkeypatch.setattr(certify, "without_copies", lambda _tables, groups: groups)
    found = workflow.search(run.path, cache="copies", **TWO_EXITS, max_error=0.2, confidence=0.9)
    assert (found["certificate"]["images"], found["certificate"]["groups"]) == (42, 40)
    assert (found["intervals"]["images"], found["intervals"]["groups"]) == (42, 40)


def test_frames_of_a_video_are_warned_of_until_groups_keep_them_together(
    run: Run, tmp_path: Path
) -> None:
    write_video(run, tmp_path / "video", frames=3)
    listener = Listener()
    workflow.memoise(run.path, name="video", root=tmp_path / "video", reporter=listener)
    warning = "30 of 30 images are nearly identical to one of another group, such as scene0_0 and"
    assert any(text.startswith(warning) for text in listener.told)
    asked = TWO_EXITS | {"max_error": 0.3, "cache": "video", "confidence": 0.9}
    found = workflow.search(run.path, **asked)
    told = found["certificate"]["near_identical"]
    assert (told["images"], told["suggested"], told["groups"]) == (30, "^(.*)_[0-9]+$", 10)
    assert any(warning in line and "'^(.*)_[0-9]+$'" in line for line in new_images_lines(found))
    set_groups(run, told["suggested"])
    found = workflow.search(run.path, **asked)
    assert found["certificate"]["groups"] == 10
    assert found["certificate"]["near_identical"]["images"] == 0
    assert not any("nearly identical" in line for line in new_images_lines(found))


def test_fresh_images_that_are_nearly_the_searched_ones_are_warned_of(
    run: Run, tmp_path: Path
) -> None:
    write_video(run, tmp_path / "video", frames=1)
    workflow.memoise(run.path, name="video", root=tmp_path / "video")
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.3, confidence=0.9, certify="video")
    told = found["certificate"]["near_searched"]
    assert (told["images"], told["pair"]) == (10, ["scene0_0", "calibration-00000"])
    assert found["certificate"]["near_identical"]["images"] == 0
    assert any("10 of 10 images are nearly identical to one that was searched" in line
               for line in new_images_lines(found))  # fmt: skip


def test_a_cache_without_thumbnails_says_how_to_add_them(run: Run) -> None:
    store = PredictionStore(run.cache("calibration"))
    old = IMAGES.remove(IMAGES.get_field_index("thumbnail"))
    rows = read_rows(store.images_file, IMAGES)
    write_rows(store.images_file, [{name: row[name] for name in old.names} for row in rows], old)
    store.write_manifest({**store.manifest(), "images_sha256": sha256(store.images_file)})
    listener = Listener()
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, reporter=listener)
    assert found["certificate"]["near_identical"] is None
    (said,) = (text for text in listener.told if "thumbnails were not memoised" in text)
    assert f"`mess memoise --run {run.path}` adds them" in said
    parts = {path: path.stat().st_mtime_ns for path in find_parts(store.parts_folder)}
    workflow.memoise(run.path)
    assert parts == {path: path.stat().st_mtime_ns for path in find_parts(store.parts_folder)}
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9)
    assert found["certificate"]["near_identical"]["images"] == 0


def test_what_to_expect_is_told_without_a_promise(run: Run) -> None:
    plain = workflow.search(run.path, **TWO_EXITS, max_error=0.1, fresh=True)
    found = workflow.search(run.path, **TWO_EXITS, max_error=0.1, expect=True)
    assert found["exits"] == plain["exits"]
    error = found["expected"]["error"]
    assert error["low"] < error["value"] < error["high"]
    (line,) = new_images_lines(found)
    assert "On new images like these 40 expect an error of" in line
    assert "--confidence 0.95" in line


@pytest.mark.parametrize("setting", ["budgeted", "final-only"])
def test_settings_where_one_exit_answers_are_certified_too(run: Run, setting: str) -> None:
    found = workflow.search(run.path, setting=setting, target="macs", max_error=0.3, confidence=0.9)
    assert found["certificate"]["holds"]
    assert found["certificate"]["limits"] == [{"max_error": 0.3, "checkpoint": None}]


def test_what_is_delivered_by_each_checkpoint_is_certified(run: Run) -> None:
    baseline = workflow.search(run.path, setting="final-only", target="macs", max_error=0)
    half, whole = (share * baseline["baseline"]["macs"] for share in (0.7, 1.5))
    checkpoints = (f"{half}=0.2", f"{whole}=0.3")
    found = workflow.search(
        run.path, setting="anytime", target="macs", checkpoints=checkpoints, confidence=0.9
    )
    certificate = found["certificate"]
    assert certificate["limits"] == [
        {"min_miou": 0.2, "checkpoint": 0},
        {"min_miou": 0.3, "checkpoint": 1},
    ]
    assert certificate["holds"]
    for bound, checkpoint in zip(certificate["bounds"], found["checkpoints"], strict=True):
        assert checkpoint["required"] <= bound < checkpoint["miou"]
    assert "by checkpoint 2 (asked 0.3)" in new_images_lines(found)[0]


def test_accuracy_is_certified_as_it_comes(run: Run) -> None:
    found = workflow.search(
        run.path, target="accuracy", max_macs="0.6x", max_exits=2, confidence=0.9
    )
    certificate = found["certificate"]
    assert certificate["limits"] == []
    assert certificate["least_miou"] < certificate["miou"]["value"]
    assert f"mIoU at least {certificate['least_miou']:.4f}" in new_images_lines(found)[0]


def test_accuracy_within_several_limits_is_certified_with_all_of_them_kept(run: Run) -> None:
    asked: dict[str, Any] = {"target": "accuracy", "max_exits": 2}
    free = workflow.search(run.path, **asked)
    limits = {"max_macs": "0.8x", "max_params": free["predicted"]["params"] - 1.0}
    limits["max_latency"] = free["predicted"]["latency_ms"]
    found = workflow.search(run.path, **asked, **limits, confidence=0.9)
    got = found["predicted"]
    assert got["macs"] <= 0.8 * found["baseline"]["macs"]
    assert got["params"] <= limits["max_params"]
    assert got["latency_ms"] <= limits["max_latency"]
    # There is no limit on accuracy to stay within, so the answer is that of the plain search.
    assert found["certificate"]["margin"] == 0
    assert found["exits"] == workflow.search(run.path, **asked, **limits)["exits"]


def test_what_is_answered_breaks_no_limit_on_cost(run: Run) -> None:
    """The whole network needs no test, but is no answer where it costs too much."""
    asked: dict[str, Any] = {"setting": "budgeted", "target": "macs"}
    found = workflow.search(run.path, **asked, max_error=0.2)
    params = float(found["predicted"]["params"])
    assert params < found["baseline"]["params"]
    # What is lost is within the limit, and nothing is left for not knowing it exactly.
    barely = asked | {"max_error": found["error"] + 1e-6, "max_params": params}
    kept = workflow.search(run.path, **barely, confidence=0.9)
    assert not kept["certificate"]["holds"]
    assert kept["predicted"]["params"] <= params
    del barely["max_params"]
    assert workflow.search(run.path, **barely, confidence=0.9)["certificate"]["holds"]


def test_policies_are_certified_together(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--policy", "all", "--target", "macs", "--max-exits", "2", "--max-error", "0.3"]
    monkeypatch.setattr("sys.argv", ["mess", "search", "--run", str(run.path), *words,
                                     "--confidence", "0.9", "--json"])  # fmt: skip
    with pytest.raises(SystemExit):
        main()
    found = json.loads(capsys.readouterr().out)
    rows = found["policies"]
    assert len(rows) > 2
    each = 1 - 0.1 / len(rows)
    for row in rows:
        certificate = row["certificate"]
        assert (certificate["compared"], certificate["confidence_together"]) == (len(rows), 0.9)
        assert certificate["confidence"] == pytest.approx(each)
        assert certificate["holds"]
        assert certificate["bounds"][0] <= 0.3
        assert run.result(row["search"]).get("certificate") == certificate
    best = min(rows, key=lambda row: (row["predicted"]["macs"], -row["predicted"]["miou"]))
    assert found["best"] == best["search"]
    alone = workflow.search(
        run.path, policy=best["policy"], **TWO_EXITS, max_error=0.3, confidence=each
    )
    assert alone["exits"] == run.result(best["search"])["exits"]
    assert alone["certificate"]["bounds"] == best["certificate"]["bounds"]
    print_policies(found)
    told = " ".join(capsys.readouterr().out.split())
    assert f"Each of {len(rows)} searches that were compared is told at" in told
    assert "so that all hold together at 90%, whichever is taken" in told
    assert "not proven" not in told
    assert "all hold together at 90%" in (Path(found["path"]) / "comparison.html").read_text()


def test_policies_use_fresh_images_together(run: Run) -> None:
    """All of them at what was asked, not each one more."""
    workflow.memoise(run.path, split="test")
    found = workflow.search(
        run.path, policy="all", **TWO_EXITS, max_error=0.3, confidence=0.9, certify="test"
    )
    left = [row["certificate"]["confidence_on_images"] for row in found["policies"]]
    assert min(left) == pytest.approx(0.9)
    assert len({round(each, 6) for each in left}) == len(left)
    assert not any("before" in line for row in found["policies"] for line in new_images_lines(row))
    # What is asked of them afterwards is one more.
    more = workflow.search(run.path, **TWO_EXITS, max_error=0.2, confidence=0.9, certify="test")
    assert more["certificate"]["confidence_on_images"] == pytest.approx(0.8)
    assert any("holds together at 80%" in line for line in new_images_lines(more))


def test_what_to_expect_of_every_policy_is_told_together(run: Run) -> None:
    found = workflow.search(run.path, policy="all", **TWO_EXITS, max_error=0.3, expect=True)
    rows = found["policies"]
    for row in rows:
        assert row["expected"]["confidence"] == pytest.approx(1 - 0.05 / len(rows))
        assert row["expected"]["confidence_together"] == 0.95
    assert "add --confidence 0.95;" in new_images_lines(rows[0])[0]


@pytest.mark.parametrize("asked", [{"confidence": 0.9}, {"expect": True}])
def test_processes_that_search_together_promise_nothing(run: Run, asked: dict[str, Any]) -> None:
    options = SearchOptions(max_error=0.1, target="macs", **asked)
    with pytest.raises(MessError, match="torchrun divides a search without.*leave them out"):
        search_run(run, options, Silent(), cast(Team, object()))


def test_fresh_images_that_are_too_few_are_refused(run: Run, tmp_path: Path) -> None:
    write_video(run, tmp_path / "video", frames=1)
    workflow.memoise(run.path, name="video", root=tmp_path / "video")
    set_groups(run, "^(scene)")
    with pytest.raises(DataError, match="10 images in 1 group are too few"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.3, confidence=0.9, certify="video")
    set_groups(run, "^(calibration)")
    with pytest.raises(DataError, match="40 images in 1 groups? are too few to search half"):
        workflow.search(run.path, **TWO_EXITS, max_lost=0.3, confidence=0.9)
    # Refused before they were looked at, they may still certify.
    assert not (run.path / "certificates").exists()


def test_what_proposes_other_instances_uses_fresh_images_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as latencies that were measured again."""
    workflow.memoise(run.path, split="test")

    def left() -> float:
        asked = {**TWO_EXITS, "max_error": 0.3, "confidence": 0.9, "certify": "test"}
        return workflow.search(run.path, **asked)["certificate"]["confidence_on_images"]

    assert (left(), left()) == (pytest.approx(0.9), pytest.approx(0.9))
    monkeypatch.setattr(mess.commands.new_images, "dependencies", lambda *_: {"costs": "others"})
    assert left() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "did you mean 0.95"),
        ({"confidence": 0.5}, "between 0.5 and 1"),
        ({"confidence": float("nan")}, "between 0.5 and 1"),
        ({"certify": "test"}, "add --confidence"),
        ({"confidence": 0.9, "expect": True}, "leave one out"),
        ({"confidence": 1}, "between 0.5 and 1, got 1$"),
        ({"confidence": 0.9, "algorithm": "optuna"}, "leave --algorithm out"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((MessError, ConfigError), match=message):
        SearchOptions(max_error=0.1, **options)


def test_a_cache_that_is_not_there_is_named(run: Run) -> None:
    with pytest.raises(CacheError, match="nights.*mess memoise"):
        workflow.search(run.path, **TWO_EXITS, max_error=0.1, confidence=0.9, certify="nights")
