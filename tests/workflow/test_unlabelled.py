"""Pictures without masks: memoised, searched, certified and shipped against the final exit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mess import workflow
from mess.cache.predictions.store import Predictions, PredictionStore
from mess.cli import terminal
from mess.cli.app import main
from mess.common.images import read_image, resize_mask
from mess.common.resizing import upsampled
from mess.data import Unlabelled
from mess.data.loader import evaluation_loader
from mess.errors import CacheError, DataError, InfeasibleError, MessError
from mess.exits import FINAL
from mess.networks.weights import save_weights
from mess.runs.network import trained_network
from mess.runs.run import Run
from mess.runs.sources import ImageSource
from tests.workflow.test_caching import Listener

TWO_EXITS: dict[str, Any] = {"target": "macs", "max_exits": 2}

COUNT = 24

ALONE = re.compile(r"(?<![\w-])(mIoU|IoU|error)(?![\w-])(?! against the final exit)")
"""A word for accuracy that does not say what it is against, and is no option."""


@pytest.fixture
def site(run: Run, tmp_path: Path) -> Path:
    """The test split's pictures, half of them in a folder below."""
    root = run.config.data.root
    assert root is not None
    site = tmp_path / "site"
    (site / "night").mkdir(parents=True)
    for number, path in enumerate(sorted((root / "test" / "images").iterdir())):
        shutil.copy(path, site / "night" if number % 2 else site)
    return site


@pytest.fixture
def memoised(run: Run, site: Path) -> Run:
    workflow.memoise(run.path, images=site, labels="final")
    return run


def held(run: Run, name: str) -> Predictions:
    return PredictionStore(run.cache(name)).read({})[0]


def assert_same(found: Predictions, expected: Predictions) -> None:
    for name, values in vars(expected).items():
        if name != "image_ids":
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command prints on stdout, where a terminal is as wide as its tables."""
    monkeypatch.setattr("sys.argv", ["mess", *words])
    monkeypatch.setattr(terminal.out, "_width", 250)
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr()
    assert stop.value.code == 0, told.err
    return " ".join(told.out.split())


def masks_beside(
    run: Run, site: Path, maps: dict[str, NDArray[np.uint8]], folder: Path
) -> dict[str, str]:
    """A folder data set of the pictures with these masks; new ids by the old, in order."""
    names = {}
    for kind in ("images", "masks"):
        (folder / "val" / kind).mkdir(parents=True)
    for number, (image_id, mask) in enumerate(maps.items()):
        names[image_id] = f"{number:04d}"
        (picture,) = site.glob(f"{image_id}.*")
        shutil.copy(picture, folder / "val" / "images" / f"{number:04d}{picture.suffix}")
        Image.fromarray(mask).save(folder / "val" / "masks" / f"{number:04d}.png")
    shutil.copy(run.classes, folder / "classes.json")
    return names


def test_a_cache_is_that_of_masks_which_the_network_itself_drew(
    memoised: Run, site: Path, tmp_path: Path
) -> None:
    """Bit for bit, where `mess predict` drew them with the network run to its end."""
    run = memoised
    workflow.search(run.path, setting="final-only", target="macs", max_error=0.5)
    workflow.export(run.path)
    ids = held(run, "site").image_ids
    pictures = [next(site.glob(f"{image_id}.*")) for image_id in ids]
    rows = workflow.predict(run.bundle("baseline"), pictures, output=tmp_path / "drawn")
    drawn = [np.asarray(Image.open(row["label_map"])) for row in rows]
    masks_beside(run, site, dict(zip(ids, drawn, strict=True)), tmp_path / "labelled")
    workflow.memoise(run.path, root=tmp_path / "labelled", name="labelled")
    assert_same(held(run, "site"), held(run, "labelled"))


def test_pictures_of_other_sizes_count_as_their_masks_would(
    run: Run, site: Path, tmp_path: Path
) -> None:
    """At the run's size, to which masks of any larger size come back."""
    for number, path in enumerate(sorted(site.rglob("*.png"))):
        larger = Image.open(path).resize((64 + 7 * number, 48 + 5 * number))
        larger.save(path)
    workflow.memoise(run.path, images=site, labels="final")
    data = ImageSource(None, site).open(run)
    assert isinstance(data, Unlabelled)
    network = trained_network(run, torch.device("cpu"))
    maps: dict[str, NDArray[np.uint8]] = {}
    # The batches of memoising: of another number of images convolutions round otherwise.
    batch_size = run.config.memoise.batch_size
    assert len(data) % batch_size == 0
    for images, _, indices in evaluation_loader(data, run.config.data, batch_size=batch_size):
        with torch.inference_mode():
            features = network.features(images.to(memory_format=torch.channels_last))
            logits = network.logits(FINAL, features)
        for index, class_HW in zip(
            indices, upsampled(logits.numpy(), data.size).argmax(1), strict=True
        ):
            image_id = data.ids[index]
            shape = read_image(next(site.glob(f"{image_id}.*"))).shape[:2]
            maps[image_id] = resize_mask(class_HW.astype(np.uint8), shape)
    masks_beside(run, site, maps, tmp_path / "labelled")
    workflow.memoise(run.path, root=tmp_path / "labelled", name="labelled")
    assert_same(held(run, "site"), held(run, "labelled"))


def test_the_final_exit_is_right_by_its_own_labels(run: Run, site: Path) -> None:
    """One pass over the pictures gives labels and predictions."""
    listener = Listener()
    workflow.memoise(run.path, images=site, labels="final", reporter=listener)
    assert listener.steps == {"reading images": COUNT, "memoising site": COUNT}
    assert "against the final exit" in listener.messages[-1]
    found = held(run, "site")
    last = found.exit_ids.index(FINAL)
    np.testing.assert_array_equal(found.intersection[last], found.label)
    np.testing.assert_array_equal(found.predicted[last], found.label)
    assert (found.label.sum(1) == 48 * 64).all()
    manifest = PredictionStore(run.cache("site")).manifest()
    assert manifest["labels"] == "final"
    assert manifest["source"] == {"kind": "images", "root": str(site), "split": None}
    (row,) = [row for row in workflow.cache_info(run.path) if row["name"] == "site"]
    assert (row["labels"], row["split"], row["state"]) == ("final", None, "ready")
    (verified,) = workflow.cache_verify(run.path, name="site")
    assert verified["faults"] == []


def test_a_search_says_what_it_is_against(
    memoised: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = memoised
    common = ("search", "--run", str(run.path), "--target", "macs", "--max-exits", "2")
    for words in (
        ("--cache", "site", "--max-error", "0.1"),
        ("--cache", "site", "--max-error", "0.1", "--expect"),
        ("--cache", "site", "--max-error", "0.3", "--confidence", "0.9"),
        ("--cache", "site", "--max-error", "0.1", "--policy", "all"),
    ):
        told = said(capsys, monkeypatch, *common, *words)
        assert "against the final exit" in told
        assert not ALONE.search(told), told
    result = run.result(run.searches()[0])
    assert result["cache"].get("labels") == "final"
    assert result["baseline"]["miou"] == 1.0
    assert result["error"] == 1.0 - result["predicted"]["miou"]
    with pytest.raises(InfeasibleError) as refusal:
        workflow.search(run.path, cache="site", target="macs", max_macs="0.01x", max_error=0.0)
    assert "error against the final exit" in str(refusal.value)
    assert not ALONE.search(str(refusal.value))
    (page,) = (run.path / "comparisons").glob("*/comparison.html")
    assert_page_says_so(page)
    # Of masks there is nothing new to say.
    told = said(capsys, monkeypatch, *common, "--max-error", "0.1")
    assert "against the final exit" not in told
    assert ALONE.search(told)


def assert_page_says_so(page: Path) -> None:
    """In what is read, and in the figures' axes."""
    # The head holds plotly.
    html = page.read_text().rpartition("</head>")[2]
    assert "mIoU against the final exit" in html
    body = re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<script.*?</script>|<pre>.*?</pre>", "", html))
    # What training held out has masks.
    assert not ALONE.search(body.replace("held-out mIoU", "")), ALONE.search(body)
    figures = " ".join(re.findall(r"(?s)<script.*?>(.*?)</script>", html))
    assert "mIoU against the final exit" in figures
    assert not ALONE.search(figures)


def test_a_certificate_is_of_pictures_of_the_kind(memoised: Run, site: Path) -> None:
    run = memoised
    found = workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.3, confidence=0.9)
    assert found["certificate"]["cache"] == "site"
    assert found["certificate"]["images"] == COUNT
    # Others certify, where they are counted against the same.
    root = run.config.data.root
    assert root is not None
    fresh = root / "val" / "images"
    workflow.memoise(run.path, images=fresh, labels="final", name="fresh")
    asked = {**TWO_EXITS, "max_error": 0.3, "confidence": 0.9}
    found = workflow.search(run.path, **asked, cache="site", certify="fresh")
    assert found["certificate"]["method"] == "fresh"
    assert found["certificate"]["images"] == 40
    for cache, certify in (("site", "test"), ("calibration", "site")):
        if certify == "test":
            workflow.memoise(run.path, split="test")
        searches = run.searches()
        with pytest.raises(MessError, match="different things, so neither certifies the other"):
            workflow.search(run.path, **asked, cache=cache, certify=certify)
        assert run.searches() == searches
    # Pictures that were searched certify nothing, whatever their folder is called.
    shutil.copytree(site / "night", site.parent / "again")
    workflow.memoise(run.path, images=site.parent / "again", labels="final")
    with pytest.raises(DataError, match="12 images of the cache 'again' are among those"):
        workflow.search(run.path, **asked, cache="site", certify="again")


def test_exits_are_compared_without_masks(memoised: Run) -> None:
    found = workflow.search(
        memoised.path, target="macs", max_error=0.3, cache="site", policy="vi", max_exits=3
    )
    assert found["policy"] == "vi"
    assert found["cache"]["labels"] == "final"


def test_a_bundle_and_the_report_say_what_they_are_against(
    memoised: Run, site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle does for real what was found in the cache."""
    run = memoised
    found = workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.1)
    bundle = workflow.export(run.path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["source"]["labels"] == "final"
    assert manifest["source"]["name"] == "site"
    report = workflow.evaluate(run=run.path, images=site, labels="final")
    assert (report["labels"], report["split"], report["root"]) == ("final", None, str(site))
    assert report["images"] == COUNT
    assert report["baseline"]["miou"] == 1.0
    assert report["miou"] == pytest.approx(found["predicted"]["miou"], abs=1e-12)
    assert report["agreement"]["same_exit"] == 1.0
    words = ("evaluate", "--run", str(run.path), "--images", str(site), "--labels", "final")
    told = said(capsys, monkeypatch, *words)
    assert f"{COUNT} images in {site}" in told
    assert "predicted mIoU against the final exit" in told
    assert not ALONE.search(told), told
    with pytest.raises(MessError, match="against the final exit, on images without masks"):
        workflow.certify(run=run.path, max_error=0.1)
    # With masks there is an mIoU, whatever the bundle was searched on.
    tested = workflow.evaluate(run=run.path)
    assert (tested["labels"], tested["split"]) == ("masks", "test")
    assert "agreement" not in tested
    assert_page_says_so(workflow.report(run.path))


def test_a_report_keeps_apart_what_is_against_masks(memoised: Run) -> None:
    """They would seem to compare in one table or figure."""
    run = memoised
    workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.1)
    newest = workflow.search(run.path, **TWO_EXITS, max_error=0.1)
    html = workflow.report(run.path).read_text()
    searches = html[html.index('<section id="searches">') : html.index('<section id="thresholds">')]
    masks, final = (searches.index(f"Measured against {of}") for of in ("masks", "the final exit"))
    assert masks < searches.index(newest["id"]) < final
    assert not ALONE.search(searches[final:])
    assert "against the final exit" not in searches[masks:final].removesuffix("<h3>")
    # The ids of the figures' places differ.
    assert 'id="figure-fronts-1"' in searches
    assert 'id="figure-fronts-2"' in searches


def test_a_changed_picture_is_found_and_memoised_by_name(memoised: Run, site: Path) -> None:
    run = memoised
    before = held(run, "site")
    path = site / "night" / sorted(p.name for p in (site / "night").iterdir())[2]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(CacheError, match="1 changed .*Run `mess memoise --name site"):
        workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.1)
    listener = Listener()
    workflow.memoise(run.path, name="site", reporter=listener)
    assert listener.steps["reading images"] == 1
    after = held(run, "site")
    differ = (after.label != before.label).any(1)
    assert [after.image_ids[i] for i in np.flatnonzero(differ)] == [f"night/{path.stem}"]
    workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.1)
    # Where the pictures are not, a search goes on, and says so.
    shutil.rmtree(site)
    listener = Listener()
    workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.2, reporter=listener)
    assert any("was not held against its data" in text for text in listener.messages)


def test_labels_follow_the_weights(memoised: Run) -> None:
    run = memoised
    before = held(run, "site")
    network = trained_network(run, torch.device("cpu"))
    with torch.no_grad():
        *_, bias = network.exit_module(FINAL).parameters()
        bias[1:] -= 1.0
    save_weights(network, run.weights)
    run = Run(run.path)
    with pytest.raises(CacheError, match="stale"):
        workflow.search(run.path, **TWO_EXITS, cache="site", max_error=0.1)
    workflow.memoise(run.path, name="site")
    after = held(run, "site")
    assert (after.label[:, 0] > before.label[:, 0]).any()
    last = after.exit_ids.index(FINAL)
    np.testing.assert_array_equal(after.predicted[last], after.label)


def test_groups_are_told_by_folders(memoised: Run) -> None:
    from tests.workflow.test_new_images import set_groups

    set_groups(memoised, "^(.).*$")
    with pytest.raises(DataError, match="24 images in 2 groups are too few"):
        workflow.search(memoised.path, **TWO_EXITS, cache="site", max_error=0.1, confidence=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "site"}, "needs --labels final: .*pictures without masks.*--root"),
        ({"labels": "final"}, "--labels final needs --images FOLDER"),
        ({"images": "site", "labels": "masks"}, "'masks' is unknown; 'final' is all there is"),
        ({"images": "site", "labels": "final", "root": "site"}, "--root .* exclude each other"),
        ({"images": "site", "labels": "final", "split": "test"}, "--split test exclude each"),
        ({"images": "nowhere", "labels": "final"}, "nowhere is no folder"),
        ({"images": "site", "labels": "final", "name": "test"}, "run's own test split.*--name"),
        ({"images": "a b", "labels": "final"}, "letters, digits.*got 'a b'. Give another"),
    ],
)
def test_what_means_nothing_is_refused(
    run: Run, site: Path, options: dict[str, Any], message: str
) -> None:
    for name in ("images", "root"):
        if name in options:
            options = options | {name: site.parent / options[name]}
    with pytest.raises(MessError, match=message):
        workflow.memoise(run.path, **options)
    assert run.caches() == ["calibration"]


def test_evaluating_takes_a_split_or_pictures(run: Run, site: Path) -> None:
    with pytest.raises(MessError, match="--split test exclude each other"):
        workflow.evaluate(run=run.path, split="test", images=site, labels="final")
    with pytest.raises(MessError, match="needs --labels final"):
        workflow.evaluate(run=run.path, images=site)


def test_pictures_that_cannot_be_counted_are_refused(run: Run, site: Path) -> None:
    bad = site / "night" / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        workflow.memoise(run.path, images=site, labels="final")
    picture = next(site.glob("*.png"))
    shutil.copy(picture, bad)
    with pytest.raises(DataError, match="are the same picture"):
        workflow.memoise(run.path, images=site, labels="final")
    # What an attempt has left is gone on with.
    bad.unlink()
    (site / "notes.txt").write_text("of the site")
    listener = Listener()
    workflow.memoise(run.path, images=site, labels="final", reporter=listener)
    assert any("1 file in folder" in text and "notes.txt" in text for text in listener.messages)
    with pytest.raises(MessError, match="'site' holds the images in .*site. Choose another name"):
        workflow.memoise(run.path, images=site / "night", labels="final", name="site")
    with pytest.raises(MessError, match="'site' holds the images in"):
        workflow.memoise(run.path, split="test", name="site")
