"""Bundles: what they answer, where they stop, and what they refuse."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import mess.export.bundle
import mess.runtime.bundle
from mess import workflow
from mess.cli.app import main
from mess.common.framing import Framing
from mess.common.normalisation import IMAGENET, Normalisation
from mess.common.progress import Silent
from mess.errors import BundleError, MessError
from mess.export.bundle import PlannedExit, export_bundle
from mess.networks.backbones.base import IMAGE
from mess.networks.candidates import candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.runtime.bundle import Answer, load_bundle
from mess.runtime.bundle_run import BundleRun, run_in_turns
from mess.runtime.manifest import read_manifest, require_files, sealed
from mess.runtime.onnx_program import OnnxProgram
from mess.sentences.bundles import verified_lines
from mess.signals.builtin import ConfidentShare
from mess.signals.decision import threshold_between
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from tests.conftest import MakeConfig
from tests.keys import write_keys
from tests.seeds import seeded
from tests.upsampling import assert_classes

ROOT = Path(__file__).parents[2]
CLASSES = 4
SIZE = (32, 48)
EXITS = ("p1-crm1-b0-dlb", "p2-crm1-b0-fcn", "final")
FACTS = {"setting": "input-dependent", "classes": list("abcd"), "palette": [[0, 0, 0]] * CLASSES}


def pictures() -> list[NDArray[np.uint8]]:
    """From nearly flat to full contrast, so that confidences differ."""
    rng = np.random.default_rng(seeded(0))
    coarse = rng.random((9, 4, 6, 3)) - 0.5
    return [
        (127 + 250 * (i + 1) / 9 * np.kron(block, np.ones((8, 8, 1)))).clip(0, 255).astype(np.uint8)
        for i, block in enumerate(coarse)
    ]


@dataclass
class Instance:
    """A network with two early exits, and what it answers to each picture at each exit."""

    network: OverprovisionedNetwork
    planned: list[PlannedExit]
    logits: list[list[Tensor]]
    """By exit, then picture; (1, C, h, w) at native resolution."""
    signals: list[list[float]]
    """By early exit, then picture."""
    taken: list[int]
    """The exit that answers each picture, by the definition."""


def native_logits(network: OverprovisionedNetwork, exit_id: str, image: Tensor) -> Tensor:
    with torch.inference_mode():
        alive = network.span(0, network.point(exit_id))({IMAGE: image}, network.reads(exit_id))
        return network.logits(exit_id, alive)


def widest_gap(values: Tensor) -> float:
    """A threshold that no value is near to, somewhere in the middle of them."""
    ordered = values.flatten().sort().values
    middle = ordered[len(ordered) // 3 : -len(ordered) // 3]
    index = int(middle.diff().argmax())
    return float((middle[index] + middle[index + 1]) / 2)


@pytest.fixture(scope="module")
def instance(make_config: MakeConfig) -> Instance:
    config = make_config(
        backbone={"name": "small_resnet", "options": {"width": 4}},
        exits={
            "points": ["block1", "block3"],
            "crm": [1],
            "blocks": [0],
            "rdi": [False],
            "heads": ["fcn", "dlb"],
            "dlb_channels": 4,
            "max_exit_cost": 99,
        },
    )
    network = build_network(config, candidates(config, CLASSES), CLASSES)
    network.train()
    with torch.no_grad():
        images = torch.from_numpy(np.stack([IMAGENET.apply(p) for p in pictures()]))
        for _ in range(20):  # batch statistics, as training would leave them
            features = network.features(images)
            for exit_id in EXITS:
                network.logits(exit_id, features)
        for exit_id in EXITS:
            list(network.exit_module(exit_id).parameters())[-2].mul_(6)
    network.eval()
    logits = [[native_logits(network, e, image[None]) for image in images] for e in EXITS]
    planned, observed = [], []
    for number, exit_id in enumerate(EXITS[:-1]):
        pixel = widest_gap(
            torch.cat([PixelMaps(each).confidence("top1").flatten() for each in logits[number]])
        )
        spec = ConfidentShare("top1", pixel, edge_enhanced=number == 1)
        shares = [measure(PixelMaps(each), [spec], SIZE).item() for each in logits[number]]
        observed.append(shares)
        distinct = sorted(set(shares))
        half = 2 * len(distinct) // 3
        planned.append(
            PlannedExit(
                exit_id=exit_id,
                point=number + 1,
                macs=1000.0 * (number + 1),
                signal=spec,
                threshold=threshold_between(distinct[half - 1], distinct[half]),
                exit_rate=0.3,
                calibration_signal=np.array(shares, np.float32),
            )
        )
    planned.append(
        PlannedExit(
            exit_id="final",
            point=3,
            macs=5000.0,
            signal=None,
            threshold=None,
            exit_rate=0.4,
            calibration_signal=None,
        )
    )
    taken = []
    for image in range(len(images)):
        reached = [
            e for e in (0, 1) if observed[e][image] >= (planned[e].threshold or float("inf"))
        ]
        taken.append(min(reached, default=2))
    return Instance(network, planned, logits, observed, taken)


def written(instance: Instance, directory: Path, format_: Any = "onnx") -> Path:
    return export_bundle(
        instance.network,
        instance.planned,
        directory,
        framing=Framing(size=SIZE),
        format_=format_,
        facts=FACTS,
        reporter=Silent(),
    )


@pytest.fixture(scope="module")
def exported(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(instance, tmp_path_factory.mktemp("exports") / "bundle")


@pytest.fixture
def bundle_path(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def edit_manifest(path: Path, **changes: Any) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | changes, None)))


def assert_same_map(found: NDArray[np.uint8], logits: Tensor) -> None:
    """Equal to the definition wherever that is not a matter of rounding."""
    assert found.dtype == np.uint8
    assert_classes(found[np.newaxis], logits, SIZE)


def assert_answers(found: Answer, instance: Instance, exit_index: int, image: int) -> None:
    assert found.exit_index == exit_index
    assert found.exit_id == EXITS[exit_index]
    assert_same_map(found.label_map, instance.logits[exit_index][image])
    if exit_index < 2:
        assert found.signal == pytest.approx(instance.signals[exit_index][image], abs=1e-5)
    else:
        assert found.signal is None


# ---- Answers


def test_the_instance_splits_the_pictures_over_all_exits(instance: Instance) -> None:
    assert set(instance.taken) == {0, 1, 2}
    assert len(set(instance.logits[2][0].argmax(1).flatten().tolist())) > 1


def test_a_bundle_answers_as_torch_does(exported: Path, instance: Instance) -> None:
    bundle = load_bundle(exported)
    for image, picture in enumerate(pictures()):
        assert_answers(bundle(picture), instance, instance.taken[image], image)


def test_the_torch_form_answers_as_torch_does(instance: Instance, tmp_path: Path) -> None:
    path = written(instance, tmp_path / "torch", "torch")
    with pytest.raises(BundleError, match="'torch', whose programs are code .* trust=True"):
        load_bundle(path)
    bundle = load_bundle(path, trust=True)
    for image, picture in enumerate(pictures()):
        assert_answers(bundle(picture), instance, instance.taken[image], image)


def test_a_bundle_runs_no_segment_beyond_the_answering_exit(
    exported: Path, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    run = OnnxProgram.__call__

    def counted(program: OnnxProgram, value: Any) -> Any:
        nonlocal calls
        calls += 1
        return run(program, value)

    monkeypatch.setattr(OnnxProgram, "__call__", counted)
    bundle = load_bundle(exported)
    for image, picture in enumerate(pictures()):
        calls = 0
        bundle(picture)
        segments = instance.taken[image] + 1
        assert calls == segments + 1  # and one program for the label map


def test_stream_yields_every_exit_in_turn(exported: Path, instance: Instance) -> None:
    bundle = load_bundle(exported)
    for image, picture in enumerate(pictures()[:3]):
        answers = list(bundle.stream(picture))
        assert len(answers) == 3
        for exit_index, answer in enumerate(answers):
            assert_answers(answer, instance, exit_index, image)


def test_stream_gives_an_answer_before_it_computes_the_next(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(exported)
    stream = bundle.stream(pictures()[0])
    assert next(stream).exit_index == 0

    def fails(*_: object) -> None:
        raise AssertionError("ran ahead")

    monkeypatch.setattr(OnnxProgram, "__call__", fails)
    with pytest.raises(BundleError, match="segment-2.onnx cannot be run: ran ahead"):
        next(stream)


def test_without_thresholds_a_bundle_runs_to_its_last_exit(bundle_path: Path) -> None:
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    edit_manifest(bundle_path, exits=[exit_ | {"threshold": None} for exit_ in exits])
    bundle = load_bundle(bundle_path)
    assert {bundle(picture).exit_id for picture in pictures()} == {"final"}


def test_a_signal_exactly_at_the_threshold_leaves(bundle_path: Path) -> None:
    signal = load_bundle(bundle_path).stream(pictures()[0])
    observed = next(signal).signal
    assert observed is not None
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    for threshold, leaves in ((observed, True), (float(np.nextafter(observed, 2)), False)):
        edit_manifest(bundle_path, exits=[exits[0] | {"threshold": threshold}, *exits[1:]])
        assert (load_bundle(bundle_path)(pictures()[0]).exit_index == 0) is leaves


# ---- Images


def test_a_path_and_its_pixels_are_answered_alike(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(pictures()[1]).save(tmp_path / "picture.png")
    bundle = load_bundle(exported)
    expected = bundle(pictures()[1])
    for path in (tmp_path / "picture.png", str(tmp_path / "picture.png")):
        found = bundle(path)
        assert found.signal == expected.signal
        np.testing.assert_array_equal(found.label_map, expected.label_map)


def test_an_image_of_another_size_is_rescaled(exported: Path) -> None:
    large = np.kron(pictures()[1], np.ones((3, 2, 1), np.uint8))
    assert load_bundle(exported)(large).label_map.shape == SIZE


OTHER = Normalisation(mean=(100, 110, 120), std=(60, 50, 40), channels="bgr", range=255.0)


def other_input(**changes: Any) -> dict[str, Any]:
    return {**asdict(Framing(size=SIZE)), **asdict(OTHER), **changes}


def test_a_bundle_normalises_as_its_manifest_says(bundle_path: Path) -> None:
    edit_manifest(bundle_path, input=other_input())
    bundle = load_bundle(bundle_path)
    assert bundle.normalisation == OTHER
    picture = pictures()[1]
    np.testing.assert_array_equal(bundle.preprocess(picture), OTHER.apply(picture))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mean": [1.0]}, r"'mean': \[1.0\].*needs three means"),
        ({"channels": "grey"}, "one of rgb, bgr, got 'grey'"),
        ({"fit": "crop"}, "one of stretch, pad, tile, got 'crop'"),
        ({"fit": "tile", "overlap": 0.75}, "from 0 to 0.5, got 0.75"),
    ],
)
def test_what_no_image_can_be_prepared_by_is_refused(
    bundle_path: Path, changes: dict[str, Any], named: str
) -> None:
    edit_manifest(bundle_path, input=other_input(**changes))
    with pytest.raises(BundleError, match=f"manifest.json has input = .*{named}.*Export"):
        load_bundle(bundle_path)


def test_bundles_are_run_each_by_its_own_settings(bundle_path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_path, tmp_path / "other"))
    figures = {"miou": 0.5, "macs": 1.0, "latency_ms": None, "params": 1.0}
    source = {"search": None, "weights": "", "data": ""}
    facts: dict[str, Any] = {"predicted": figures, "baseline": figures, "source": source}
    facts |= {"ignore_index": 255, "policy": None}
    # The first exit answers all: the last one has no signal to tell them apart by.
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    facts["exits"] = [exits[0] | {"threshold": 0.0}, *exits[1:]]
    edit_manifest(bundle_path, **facts)
    edit_manifest(other, input=other_input(), **facts)
    paths = (bundle_path, other, bundle_path)
    bundles = [load_bundle(path) for path in paths]
    runs = [BundleRun(bundle) for bundle in bundles]
    with Silent().task("", 1) as task:
        run_in_turns(runs, [(picture, np.zeros(SIZE, np.uint8)) for picture in pictures()], task)
    expected = [[bundle(picture).signal for picture in pictures()] for bundle in bundles]
    assert [run.signal for run in runs] == expected
    assert expected[0] != expected[1]


def test_every_segment_is_warm_before_an_image_counts(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first exit answers the only image; the others' programs have run all the same."""
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    edit_manifest(bundle_path, exits=[exits[0] | {"threshold": 0.0}, *exits[1:]])
    bundle = load_bundle(bundle_path)
    ran: Counter[int] = Counter()
    call = OnnxProgram.__call__

    def counted(program: OnnxProgram, *values: Any) -> Any:
        ran[id(program)] += 1
        return call(program, *values)

    monkeypatch.setattr(OnnxProgram, "__call__", counted)
    monkeypatch.setattr(BundleRun, "add", lambda *_: None)
    with Silent().task("", 1) as task:
        run_in_turns([BundleRun(bundle)], [(pictures()[0], np.zeros(SIZE, np.uint8))], task)
    assert [ran[id(program)] for program in bundle._segments] == [4, 3, 3]


@pytest.mark.parametrize("threads", [0, 257, 2**31])
def test_threads_that_no_machine_has_are_refused(exported: Path, threads: int) -> None:
    with pytest.raises(MessError, match=f"--threads is from 1 to 256, got {threads}"):
        load_bundle(exported, threads=threads)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((32, 48), np.uint8), r"\(32, 48\)"),
        (np.zeros((32, 48, 4), np.uint8), r"\(32, 48, 4\)"),
        (np.zeros((32, 48, 3), np.float32), "float32"),
        (np.zeros((0, 48, 3), np.uint8), "at least one pixel"),
        (None, "a path or a NumPy array, got NoneType"),
        ([[[0, 0, 0]]], "got list"),
    ],
)
def test_what_is_no_rgb_image_is_refused(exported: Path, image: Any, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        load_bundle(exported)(image)


def test_a_normalised_image_of_another_shape_is_refused_with_both(exported: Path) -> None:
    with pytest.raises(BundleError, match=r"\(3, 32, 48\), got \(3, 32, 40\)"):
        load_bundle(exported).answer(np.zeros((3, 32, 40), np.float32))


# ---- What a bundle holds


def test_the_manifest_says_what_the_bundle_is(exported: Path, instance: Instance) -> None:
    manifest = load_bundle(exported).manifest
    jsonschema.validate(manifest, json.loads((ROOT / "docs/bundle.schema.json").read_text()))
    assert manifest["bundle_version"] == 3
    assert manifest["format"] == "onnx"
    assert manifest["input"] == {
        "size": list(SIZE),
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channels": "rgb",
        "range": 1.0,
        "fit": "stretch",
        "overlap": 0.125,
    }
    assert {key: manifest[key] for key in FACTS} == FACTS
    assert [exit_["exit_id"] for exit_ in manifest["exits"]] == list(EXITS)
    for exit_, planned in zip(manifest["exits"], instance.planned, strict=True):
        assert exit_["threshold"] == planned.threshold
        assert exit_["macs"] == planned.macs
        assert exit_["exit_rate"] == planned.exit_rate
    histogram = manifest["histograms"][EXITS[0]]
    assert sum(histogram["counts"]) == len(pictures())
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert set(manifest["histograms"]) == set(EXITS[:-1])


def test_every_file_of_a_bundle_has_its_hash(exported: Path) -> None:
    files = {file.name for file in exported.iterdir()} - {"manifest.json"}
    assert set(load_bundle(exported).manifest["files"]) == files
    assert {"segment-1.onnx", "segment-2.onnx", "segment-3.onnx"} < files


def test_a_bundle_runs_without_torch(exported: Path) -> None:
    code = (
        "import sys, numpy, mess\n"
        "answer = mess.load_bundle(sys.argv[1])(numpy.zeros((32, 48, 3), numpy.uint8))\n"
        "print(answer.exit_id, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1] == "False"


# ---- Refusals


@pytest.mark.parametrize("name", ["segment-2.onnx", "answer-4x6.onnx"])
def test_an_altered_file_is_refused_by_name(bundle_path: Path, name: str) -> None:
    data = bytearray((bundle_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        load_bundle(bundle_path)


def test_a_missing_file_is_refused_by_name(bundle_path: Path) -> None:
    (bundle_path / "segment-3.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks segment-3\.onnx"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("version", [0, 2, 4, None, True, "3"])
def test_another_bundle_version_is_refused_with_both(bundle_path: Path, version: object) -> None:
    edit_manifest(bundle_path, bundle_version=version)
    move = "Update mess, or export it" if version == 4 else "Export it"
    with pytest.raises(
        BundleError, match=rf"bundle version {version!r}, this version of mess reads 3\. {move}"
    ):
        load_bundle(bundle_path)


def test_a_folder_without_or_with_a_broken_manifest_is_refused(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        load_bundle(bundle_path)
    (bundle_path / "manifest.json").unlink()
    with pytest.raises(BundleError, match="is no bundle"):
        load_bundle(bundle_path)
    with pytest.raises(BundleError, match="is no bundle"):
        load_bundle(bundle_path / "nowhere")


# ---- Writing


@pytest.fixture
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are written in an instant."""

    def write(module: Any, outputs: Any, shape: Any, path: Path, format_: Any) -> None:
        path.write_bytes(b"program")

    monkeypatch.setattr(mess.export.bundle, "write_program", write)


@pytest.mark.usefixtures("_no_programs")
def test_a_folder_that_holds_something_else_is_not_overwritten(
    instance: Instance, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle"):
        written(instance, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("_no_programs")
def test_an_older_bundle_is_replaced_whole(instance: Instance, tmp_path: Path) -> None:
    path = written(instance, tmp_path / "bundle")
    (path / "segment-9.onnx").write_bytes(b"of the older bundle")
    with pytest.raises(BundleError, match="is no bundle"):
        written(instance, path)  # whose file that is, nobody knows
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["segment-9.onnx"] = manifest["files"]["segment-1.onnx"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    written(instance, path)
    assert not (path / "segment-9.onnx").exists()
    assert (path / "manifest.json").is_file()


def test_exports_at_once_do_not_see_each_other(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)

    def write(module: Any, outputs: Any, shape: Any, path: Path, format_: Any) -> None:
        # All have begun before one ends.
        if path.name == "segment-1.onnx":
            together.wait(60)
        path.write_bytes(f"program {path.name}".encode())

    monkeypatch.setattr(mess.export.bundle, "write_program", write)
    path = tmp_path / "bundle"
    with ThreadPoolExecutor(4) as pool:
        exports = [pool.submit(written, instance, path) for _ in range(4)]
    assert [export.result() for export in exports] == [path] * 4
    require_files(read_manifest(path), path)
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("_no_programs")
def test_a_bundle_behind_a_link_is_replaced_and_the_link_stays(
    instance: Instance, tmp_path: Path
) -> None:
    link, real = tmp_path / "link", tmp_path / "disk" / "bundle"
    link.symlink_to(real)
    for _ in range(2):
        assert written(instance, link) == real
        assert link.is_symlink()
        require_files(read_manifest(link), link)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "link"]
    assert [file.name for file in real.parent.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("_no_programs")
def test_a_full_disk_is_one_line(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mess.export.bundle, "write_program", fails)
    with pytest.raises(MessError, match="bundle cannot be written: there is no room for it"):
        written(instance, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_no_programs")
def test_a_failed_export_leaves_the_older_bundle_and_nothing_else(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(instance, tmp_path / "bundle")
    before = (path / "manifest.json").read_text()

    def fails(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(mess.export.bundle, "write_program", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        written(instance, path)
    assert (path / "manifest.json").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


# ---- Bundles that nobody vouches for


def program_of(path: Path, change: Any) -> None:
    """Change the first program as ONNX, and seal the bundle again as who means harm would."""
    file = path / "segment-1.onnx"
    graph = onnx.load(file)
    change(graph)
    file.write_bytes(graph.SerializeToString())
    resealed(path, file.name)


def resealed(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    files = json.loads((path / "manifest.json").read_text())["files"]
    said = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(path, files=files | {name: said})


def test_weights_in_another_file_are_never_read(bundle_path: Path) -> None:
    def outside(graph: Any) -> None:
        weight = graph.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")

    program_of(bundle_path, outside)
    with pytest.raises(BundleError, match="segment-1.onnx cannot be run: .* in another file"):
        load_bundle(bundle_path)


def test_a_program_of_other_inputs_than_the_manifest_says_is_refused(bundle_path: Path) -> None:
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    outputs = [name for name in exits[1]["outputs"] if name != "signal"]
    second = exits[1] | {"outputs": outputs, "signal": None, "threshold": None}
    edit_manifest(bundle_path, exits=[exits[0], second, exits[2]])
    with pytest.raises(BundleError, match="segment-2.onnx takes 1 values and gives 3; .* 1 and 2"):
        load_bundle(bundle_path)


def test_a_size_that_programs_were_not_made_for_is_one_line(bundle_path: Path) -> None:
    edit_manifest(bundle_path, input=json_input(bundle_path) | {"size": [48, 64]})
    bundle = load_bundle(bundle_path)
    with pytest.raises(BundleError, match="segment-1.onnx cannot be run: "):
        bundle(pictures()[0])


def json_input(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())["input"]


def test_an_answer_of_another_size_is_refused(bundle_path: Path) -> None:
    """Programs of other exits, swapped and sealed again: nothing of them reaches a label map."""
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    for exit_ in exits:
        exit_["answer"], exit_["segment"] = exit_["segment"], exit_["answer"]
    edit_manifest(bundle_path, exits=exits)
    with pytest.raises(BundleError):
        load_bundle(bundle_path)(pictures()[0])


def test_files_are_read_once_and_run_as_they_were_checked(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is swapped between the check and the run is not run."""
    checked = mess.runtime.bundle.file_content

    def swapped(manifest: Any, path: Path, name: str) -> bytes:
        content = checked(manifest, path, name)
        (path / name).write_bytes(b"other")
        return content

    expected = [answer.signal for answer in map(load_bundle(bundle_path), pictures())]
    monkeypatch.setattr(mess.runtime.bundle, "file_content", swapped)
    bundle = load_bundle(bundle_path)
    assert [bundle(picture).signal for picture in pictures()] == expected
    with pytest.raises(BundleError, match="was altered"):
        load_bundle(bundle_path)


def test_a_bundle_goes_to_other_processes(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    again = pickle.loads(pickle.dumps(bundle))
    for picture in pictures():
        assert again(picture).signal == bundle(picture).signal
    pickled = pickle.dumps(bundle)
    exits = json.loads((bundle_path / "manifest.json").read_text())["exits"]
    edit_manifest(bundle_path, exits=[exits[0] | {"threshold": 0.0}, *exits[1:]])
    with pytest.raises(BundleError, match="another bundle than the one that was pickled"):
        pickle.loads(pickled)


def test_damaged_bundles_are_refused_or_run_as_they_were(exported: Path, bundle_path: Path) -> None:
    """One byte of one file changed, sealed again or not, 100 times."""
    rng = random.Random(seeded(0))
    names = sorted(file.name for file in exported.iterdir())
    expected = [answer.exit_id for answer in map(load_bundle(exported), pictures())]
    refused = []
    for number in range(100):
        name = rng.choice(names)
        content = bytearray((exported / name).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (bundle_path / name).write_bytes(content)
        try:
            if number % 2 and name != "manifest.json":
                resealed(bundle_path, name)
            elif name == "manifest.json" and number % 2:
                edit_manifest(bundle_path)
            bundle = load_bundle(bundle_path)
            for picture in pictures()[:2]:
                answer = bundle(picture)
                assert answer.label_map.shape == SIZE
                assert answer.exit_id in expected or number % 2
        except BundleError as error:
            refused.append(str(error))
        except ValueError:  # a manifest that is no JSON cannot be sealed
            assert name == "manifest.json"
        for each in names:
            shutil.copyfile(exported / each, bundle_path / each)
    assert len(refused) >= 50
    assert not any("\n" in message for message in refused)


# ---- mess verify


def test_verify_tells_what_a_bundle_is(exported: Path, bundle_path: Path) -> None:
    found = workflow.verify(exported, digest=load_bundle(exported).digest.upper())
    assert found["exits"] == list(EXITS)
    assert found["files"] == len(list(exported.iterdir())) - 1
    assert "is what was exported: 3 exits" in verified_lines(found)[0]
    assert verified_lines(found)[-1] == "It carries no certificate."
    told = {"holds": True, "confidence": 0.9}
    file = bundle_path / "manifest.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()), told)))
    certified = workflow.verify(bundle_path, digest=found["digest"])
    assert verified_lines(certified)[-1] == (
        "It carries a certificate that holds at 90%, unaltered."
    )


def test_a_signed_bundle_runs_for_who_has_the_key(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def said(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["mess", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return " ".join(capsys.readouterr().out.split())

    (private, public), (_, stranger) = (write_keys(tmp_path / each) for each in ("own", "other"))
    digest = load_bundle(bundle_path).digest
    assert f"Digest: {digest}" in said("sign", bundle_path, "--key", private)
    assert load_bundle(bundle_path, public_key=public).digest == digest
    assert "Signed by the key whose public half" in said(
        "verify", bundle_path, "--public-key", public
    )
    assert "--public-key checks by whom" in said("verify", bundle_path)
    with pytest.raises(BundleError, match="not signed by the key of"):
        load_bundle(bundle_path, public_key=stranger)
    with pytest.raises(BundleError, match="not signed by the key of"):
        workflow.predict(
            bundle_path, [tmp_path / "a.png"], output=tmp_path / "out", public_key=stranger
        )
    # What was altered is not signed.
    (bundle_path / "segment-1.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="segment-1.onnx was altered"):
        workflow.sign(bundle_path, private)


def test_verify_refuses_another_bundle_and_altered_files(bundle_path: Path) -> None:
    with pytest.raises(BundleError, match="not 00: it is another bundle"):
        workflow.verify(bundle_path, digest="00")
    (bundle_path / "segment-1.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="segment-1.onnx was altered"):
        workflow.verify(bundle_path)
