"""A bundle's manifest, whatever the file holds: what was written, or one message."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mess.errors import BundleError
from mess.runtime.format import BUNDLE_VERSION, MANIFEST, Manifest
from mess.runtime.manifest import facts_of, read_manifest, require_files, sealed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

FILE = {"sha256": "0" * 64, "bytes": 7}
WHOLE: dict[str, Any] = {
    "bundle_version": BUNDLE_VERSION,
    "format": "onnx",
    "input": {
        "size": [32, 48],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channels": "rgb",
        "range": 1.0,
        "fit": "stretch",
        "overlap": 0.125,
    },
    "exits": [
        {
            "exit_id": "p1-crm1-b0-fcn",
            "segment": "segment-1.onnx",
            "inputs": ["features.image"],
            "outputs": ["next_features.low", "next_features.deep", "logits", "signal", "labels"],
            "answer": "answer-4x6.onnx",
            "signal": {"name": "ne@native", "kind": "ne"},
            "threshold": 0.5,
            "exit_rate": 0.25,
            "macs": 1000.0,
        },
        {
            "exit_id": "p2-crm1-b0-fcn",
            "segment": "segment-2.onnx",
            "inputs": ["features.deep", "previous_labels"],
            "outputs": ["next_features.deep", "logits", "signal"],
            "answer": "answer-4x6.onnx",
            "signal": {"name": "vi", "kind": "vi"},
            "threshold": -0.5,
            "exit_rate": 0.25,
            "macs": 2000,
        },
        {
            "exit_id": "final",
            "segment": "segment-3.onnx",
            "inputs": ["features.deep", "features.low"],
            "outputs": ["logits"],
            "answer": "answer-8x12.onnx",
            "signal": None,
            "threshold": None,
            "exit_rate": None,
            "macs": 5e9,
        },
    ],
    "histograms": {"p1-crm1-b0-fcn": {"edges": [0.0, 0.5, 1.0], "counts": [3, 4]}},
    "files": dict.fromkeys(
        (
            "segment-1.onnx",
            "segment-2.onnx",
            "segment-3.onnx",
            "answer-4x6.onnx",
            "answer-8x12.onnx",
        ),
        FILE,
    ),
}
FIGURES = {"miou": 0.5, "macs": 1e6, "latency_ms": None, "params": 1e3}
FACTS: dict[str, Any] = {
    "setting": "input-dependent",
    "policy": None,
    "predicted": FIGURES,
    "baseline": FIGURES,
    "source": {"search": None, "weights": "0", "data": "0"},
    "classes": ["sky", "road"],
    "palette": [[0, 0, 0], [255, 0, 0]],
    "ignore_index": 255,
}


SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "bundle.schema.json").read_text())
)


def read(content: bytes) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return read_manifest(Path(folder))


def as_written(manifest: dict[str, Any], certificate: dict[str, Any] | None = None) -> bytes:
    return json.dumps(sealed(manifest, certificate)).encode()


def changed(change: Callable[[dict[str, Any]], None], of: dict[str, Any] = WHOLE) -> dict[str, Any]:
    manifest = copy.deepcopy(of)
    change(manifest)
    return manifest


# ---- What was written


def test_what_was_written_is_read() -> None:
    assert read(as_written(WHOLE | FACTS)) == sealed(WHOLE | FACTS, None)


def test_the_digest_is_the_one_of_the_description() -> None:
    """docs/bundle.md, by hand: a driver in another language computes it likewise."""
    manifest = read(as_written(WHOLE | {"format": "\u00fc \u2713"}, {"holds": True}))
    rest = {key: manifest[key] for key in sorted(manifest) if key not in ("digest", "certificate")}
    text = json.dumps(rest, sort_keys=True, separators=(", ", ": "), ensure_ascii=True)
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == manifest["digest"]


def test_the_schema_says_what_readers_check() -> None:
    SCHEMA.check_schema(SCHEMA.schema)
    SCHEMA.validate(json.loads(as_written(WHOLE | FACTS, {"holds": True})))
    for change in (inputs(size=[0, 48]), exits(0, macs=-1), files(bytes=0), renamed("../out")):
        assert not SCHEMA.is_valid(json.loads(as_written(changed(change))))


def test_a_certificate_is_of_its_bundle_and_leaves_its_digest() -> None:
    plain = read(as_written(WHOLE))
    certified = read(as_written(WHOLE, {"holds": True}))
    assert certified["digest"] == plain["digest"]
    with pytest.raises(BundleError, match="certificate of another bundle"):
        read(json.dumps(plain | {"certificate": {}}).encode())
    told = certified.get("certificate", {})
    assert told["holds"] is True
    for key, value in (("holds", False), ("bundle", "0" * 64), ("digest", None)):
        altered = json.dumps(certified | {"certificate": told | {key: value}}).encode()
        with pytest.raises(BundleError, match="altered|certificate of another bundle"):
            read(altered)


@pytest.mark.parametrize("version", [BUNDLE_VERSION + 1, 2, 0, None, True, 3.5, "3", [3]])
def test_other_versions_are_refused_before_their_keys(version: Any) -> None:
    with pytest.raises(BundleError, match=re.escape(f"has bundle version {version!r}, this")):
        read(json.dumps({"bundle_version": version}).encode())


# ---- Damage


@given(st.sampled_from(sorted(WHOLE)))
def test_a_key_that_is_missing_is_named(key: str) -> None:
    if key == "bundle_version":
        return
    with pytest.raises(BundleError, match=f"lacks {key}. Export the bundle again"):
        read(as_written(changed(lambda manifest: manifest.pop(key))))


@given(st.integers(0, 2), st.sampled_from(sorted(WHOLE["exits"][0])))
def test_a_key_that_an_exit_lacks_is_named(number: int, key: str) -> None:
    with pytest.raises(BundleError, match=rf"lacks exits\[{number}\]\.{key}\. Export"):
        read(as_written(changed(lambda manifest: manifest["exits"][number].pop(key))))


def test_a_manifest_without_digest_is_refused() -> None:
    with pytest.raises(BundleError, match="lacks digest"):
        read(json.dumps(WHOLE).encode())


@pytest.mark.parametrize("key", ["macs", "threshold", "exit_rate"])
@pytest.mark.parametrize("truth", [True, False])
def test_a_truth_is_no_number(key: str, truth: bool) -> None:
    """Though it is one to Python."""
    manifest = changed(lambda manifest: manifest["exits"][0].update({key: truth}))
    with pytest.raises(BundleError, match=rf"exits\[0\]\.{key} = {truth}"):
        read(as_written(manifest))


@given(JSON)
def test_other_content_is_refused(content: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json (is damaged|has bundle version)"):
        read(json.dumps(content).encode())


@given(st.binary(max_size=20))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        read(content)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"macs": 1000.0', '"macs": NaN', "NaN is no number"),
        ('"macs": 1000.0', '"macs": 1e999', "1e999 is larger than any number"),
        ('"threshold": 0.5', '"threshold": -Infinity', "-Infinity is no number"),
        ('"threshold": 0.5', '"threshold": 0.5, "threshold": 0.1', "'threshold' is there twice"),
        ('"macs": 1000.0', f'"macs": {"9" * 5000}', "is damaged: .*digits"),
        ('"macs": 1000.0', f'"macs": {"[" * 200_000}', "is damaged: "),
        ('"macs": 1000.0', f'"macs": {" " * 2**24} 1', "is larger than 16,777,216 bytes"),
    ],
)
def test_json_that_readers_could_take_differently_is_refused(
    old: str, new: str, named: str
) -> None:
    text = as_written(WHOLE).decode()
    assert old in text
    with pytest.raises(BundleError, match=named):
        read(text.replace(old, new, 1).encode())


@given(st.data())
def test_no_edit_goes_unnoticed(data: st.DataObject) -> None:
    manifest = sealed(WHOLE | FACTS, None)
    place, key = data.draw(st.sampled_from(list(_places(manifest))))
    value = data.draw(JSON)
    if _is_same(place[key], value):
        return
    place[key] = value
    with pytest.raises(BundleError):
        read(json.dumps(manifest).encode())


def _places(value: Any) -> Any:
    """Every dictionary and list within, with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _is_same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(st.data())
def test_an_edit_with_a_new_digest_is_refused_in_words_or_read_as_it_is(
    data: st.DataObject,
) -> None:
    manifest: dict[str, Any] = copy.deepcopy(WHOLE | FACTS)
    place, key = data.draw(st.sampled_from(list(_places(manifest))))
    place[key] = data.draw(JSON)
    content, refused = as_written(manifest), None
    try:
        assert facts_of(read(content), Path("bundle")) == json.loads(content)
        SCHEMA.validate(json.loads(content))  # takes all that a reader takes
    except BundleError as error:
        refused = str(error)
    assert refused is None or "xport" in refused


# ---- Ranges, names and wiring


def exits(number: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["exits"][number].update(changes)


def inputs(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["input"].update(changes)


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("segment-2.onnx")
        manifest["exits"][1]["segment"] = name

    return change


def files(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"].update({"segment-1.onnx": FILE | changes})


def histogram(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["histograms"]["p1-crm1-b0-fcn"].update(changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (inputs(size=[100_000, 100_000]), "input.size = .*from 1 to 16,384"),
        (inputs(size=[16_384, 16_384]), "at most 67,108,864 pixels"),
        (inputs(size=[0, 48]), "input.size"),
        (inputs(size=[32]), "input.size"),
        (inputs(std=[0.2, 0.0, 0.2]), "input.std = 0.0; it is from 1e-06"),
        (inputs(std=[0.2, -1, 0.2]), "input.std = -1"),
        (inputs(mean=[1e7, 0, 0]), "input.mean = 10000000.0"),
        (inputs(mean=[0.5]), "needs three means"),
        (inputs(range=0), "input.range = 0"),
        (inputs(fit="crop"), "one of stretch, pad, tile"),
        (inputs(speed=1), "the key 'input.speed', which format 3 has not"),
        (exits(1, speed=1), r"the key 'exits\[1\].speed'"),
        (lambda manifest: manifest.update(more=1), "the key 'more'"),
        (files(more=1), "the key 'files"),
        (lambda manifest: manifest.update(exits=[]), "has 0 exits"),
        (lambda manifest: manifest.update(exits=manifest["exits"] * 22), "has 66 exits"),
        (exits(0, exit_id=""), "exit_id = ''; it is 1 to 256 printable"),
        (exits(0, exit_id="a\x1b[2J"), "exit_id = "),
        (exits(1, exit_id="p1-crm1-b0-fcn"), "the exit 'p1-crm1-b0-fcn' twice"),
        (exits(0, exit_rate=1.5), "exit_rate = 1.5; it is from 0 to 1"),
        (exits(0, macs=-1), "macs = -1"),
        (exits(0, threshold=1e30), "threshold = 1e"),
        (exits(0, signal=None), r"exits\[0\].signal = None and outputs"),
        (exits(2, threshold=0.5), "no signal to hold against it"),
        (renamed("../outside.onnx"), "the file '../outside.onnx'; files lie in the"),
        (renamed("/etc/passwd"), "the file '/etc/passwd'"),
        (renamed("c:program.onnx"), "the file 'c:program.onnx'"),
        (renamed(".hidden"), "the file '.hidden'"),
        (renamed("a\\b.onnx"), "the file "),
        (renamed("NUL.onnx"), "the file 'NUL.onnx'"),
        (renamed("x" * 129), "the file 'xxx"),
        (renamed(""), "the file ''"),
        (renamed("segment-1.onnx\n"), "the file "),
        (renamed("Segment-1.ONNX"), "which some systems hold for one file"),
        (renamed("Manifest.json"), "which some systems hold for one file"),
        (files(sha256="0"), "files.segment-1.onnx.sha256 = '0', which is none"),
        (files(bytes=0), "bytes = 0"),
        (files(bytes=2**40), "bytes = 1099511627776"),
        (lambda manifest: manifest.update(files={}), "'answer-4x6.onnx', which is not among its"),
        (
            lambda manifest: manifest["files"].update({"more.onnx": FILE}),
            "holds 'more.onnx', which no exit runs",
        ),
        (exits(1, segment="other.onnx"), "runs 'other.onnx', which is not among its files"),
        (exits(0, inputs=[]), "the first program takes the image alone"),
        (exits(0, inputs=["a", "b"]), "the first program takes the image alone"),
        (exits(1, inputs=[]), "would see nothing of the image"),
        (exits(1, inputs=["features.other"]), "'features.other' in .*, which no program before"),
        (exits(2, inputs=["previous_labels"]), "'previous_labels' in .*, which no program before"),
        (exits(1, inputs=["features.deep"] * 2), "'features.deep' twice"),
        (exits(2, outputs=["logits", "logits"]), "'logits' twice"),
        (exits(2, outputs=[]), r"no logits in exits\[2\].outputs"),
        (exits(2, outputs=["logits", "more"]), "'more' in .*, of which nothing is known"),
        (
            lambda manifest: manifest["histograms"].update(other={"edges": [0, 1], "counts": [1]}),
            "a histogram of 'other', which is none of its exits",
        ),
        (histogram(edges=[0, 1]), "2 histograms.* for 2 counts; there is one more"),
        (histogram(edges=[0, 1, 1]), "edges that do not rise"),
        (histogram(counts=[1, -1]), "counts = -1"),
        (histogram(edges=[], counts=[]), "0 histograms"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_a_file_is_opened(
    change: Callable[[dict[str, Any]], None], named: str
) -> None:
    with pytest.raises(BundleError, match=f"{MANIFEST} .*{named}.*Export the bundle again"):
        read(as_written(changed(change)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": []}, "has 0 classes"),
        ({"classes": ["a\n"]}, "classes = "),
        ({"palette": [[0, 0, 0]]}, "1 colours for 2 classes"),
        ({"palette": [[0, 0, 0], [256, 0, 0]]}, r"the colour \[256, 0, 0\]"),
        ({"ignore_index": 256}, "ignore_index = 256"),
        ({"setting": ""}, "setting = ''"),
        ({"predicted": FIGURES | {"miou": 1.5}}, "predicted.miou = 1.5"),
        ({"baseline": FIGURES | {"latency_ms": -1.0}}, "baseline = -1.0"),
    ],
)
def test_what_is_told_of_the_run_has_its_ranges(change: dict[str, Any], named: str) -> None:
    manifest = read(as_written(WHOLE | FACTS | change))
    with pytest.raises(BundleError, match=f"{named}.*Export the bundle again"):
        facts_of(manifest, Path("bundle"))


# ---- Files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of files that are no programs, with a manifest that fits them."""
    path = tmp_path / "bundle"
    path.mkdir()
    for name in WHOLE["files"]:
        (path / name).write_bytes(b"program")
    said = {"sha256": hashlib.sha256(b"program").hexdigest(), "bytes": 7}
    manifest = WHOLE | {"files": dict.fromkeys(WHOLE["files"], said)}
    (path / MANIFEST).write_bytes(as_written(manifest))
    return path


def test_files_that_are_what_the_manifest_says_pass(bundle: Path) -> None:
    require_files(read_manifest(bundle), bundle)


@pytest.mark.parametrize("content", [b"", b"prograM", b"program and more"])
def test_an_altered_file_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "segment-2.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"segment-2\.onnx was altered"):
        require_files(read_manifest(bundle), bundle)


@pytest.mark.parametrize("name", ["segment-2.onnx", MANIFEST])
def test_a_link_out_of_the_folder_is_refused(bundle: Path, name: str) -> None:
    outside = (bundle / name).rename(bundle.parent / name)
    (bundle / name).symlink_to(outside)
    with pytest.raises(BundleError, match=f"{re.escape(name)} is a symbolic link"):
        require_files(read_manifest(bundle), bundle)


def test_a_folder_in_the_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "segment-2.onnx").unlink()
    (bundle / "segment-2.onnx").mkdir()
    with pytest.raises(BundleError, match=r"lacks segment-2\.onnx"):
        require_files(read_manifest(bundle), bundle)
