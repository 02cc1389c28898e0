"""Signals against scipy, scikit-image, plain loops, and the papers' words taken literally."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import softmax
from scipy.stats import entropy
from skimage.feature import canny
from skimage.metrics import variation_of_information
from skimage.segmentation import find_boundaries
from torch import Tensor
from torch.nn import functional as F

from mess.config import MemoiseConfig
from mess.errors import ConfigError
from mess.export.programs import require_exportable
from mess.signals.builtin import (
    ConfidentShare,
    MeanConfidence,
    NormalisedEntropy,
    VariationOfInformation,
)
from mess.signals.maps import CONFIDENCES, PixelMaps, resized
from mess.signals.measure import SignalModule, maps_at, measure
from mess.signals.registry import (
    PAIR_SIGNALS,
    configured_signals,
    distinct,
    names_by_policy,
    signal_from_json,
)
from mess.signals.signal import FULL, Signal
from tests.seeds import seeded
from tests.upsampling import assert_classes

SIZE = (88, 112)
"""Of the input, eight times the native resolution of most logits here."""


def random_logits(seed: int, shape: tuple[int, ...] = (2, 5, 11, 14)) -> Tensor:
    """Smooth enough for regions, rough enough for edges everywhere, border included."""
    rng = np.random.default_rng(seeded(seed))
    rough = rng.normal(size=shape)
    smooth = ndimage.gaussian_filter(rough, (0, 0, 1.2, 1.2))
    return torch.from_numpy(6 * smooth + 0.5 * rough).float()


def probabilities(logits: Tensor) -> NDArray[np.float64]:
    return softmax(logits.numpy().astype(np.float64), axis=1)


def confidence(logits: Tensor, kind: str) -> NDArray[np.float64]:
    """Pixel confidences in double precision, (B, h, w)."""
    exact = probabilities(logits)
    if kind == "top1":
        return exact.max(1)
    return 1 - entropy(exact, axis=1, base=exact.shape[1])


def measured(logits: Tensor, *signals: Signal) -> NDArray[np.float32]:
    return measure(PixelMaps(logits), signals, SIZE).numpy()


def plain_edges(label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels whose class differs from that of one of their four neighbours."""
    edges = np.zeros(label.shape, bool)
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    edges[y, x] |= label[y, x] != label[y + dy, x + dx]
    return edges


def literal_enhancement(
    confidence: NDArray[np.float32], band: NDArray[np.bool_], stride: int = 1
) -> NDArray[np.float32]:
    """Eq. 9: in the band, the median of the (4·os + 1)² window, borders replicated."""
    median = ndimage.median_filter(confidence, size=4 * stride + 1, mode="nearest")
    return np.where(band, median, confidence)


# ---- Pixel confidence


@pytest.mark.parametrize("kind", ["top1", "entropy"])
@pytest.mark.parametrize("classes", [2, 5, 150])
def test_pixel_confidences_are_their_definitions(kind: str, classes: int) -> None:
    logits = random_logits(classes, (2, classes, 6, 7))
    found = PixelMaps(logits).confidence(kind)
    np.testing.assert_allclose(found, confidence(logits, kind), atol=1e-6)


@pytest.mark.parametrize("kind", list(CONFIDENCES))
def test_confidences_reach_their_ends(kind: str) -> None:
    certain = torch.tensor([0.0, 200.0, 0.0]).view(1, 3, 1, 1)
    assert PixelMaps(certain).confidence(kind).item() == 1.0
    least = {"top1": 1 / 3, "entropy": 0.0}[kind]
    even = PixelMaps(torch.zeros(1, 3, 1, 1)).confidence(kind)
    assert even.item() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("kind", list(CONFIDENCES))
def test_confidences_do_not_depend_on_what_is_added_to_all_logits(kind: str) -> None:
    logits = random_logits(3)
    there = PixelMaps(logits + 1000).confidence(kind)
    torch.testing.assert_close(there, PixelMaps(logits).confidence(kind), atol=2e-4, rtol=0)


# ---- Shares and means


@pytest.mark.parametrize("seed", range(3))
def test_a_share_counts_pixels_that_reach_the_threshold(seed: int) -> None:
    logits = random_logits(seed)
    found = measured(
        logits, ConfidentShare("top1", 0.6, False), ConfidentShare("entropy", 0.4, False)
    )
    assert found.shape == (2, 2)
    assert found.dtype == np.float32
    for column, (kind, threshold) in enumerate((("top1", 0.6), ("entropy", 0.4))):
        for image, map_hw in enumerate(confidence(logits, kind)):
            reached = sum(c >= threshold for c in map_hw.ravel().tolist())
            assert found[image, column] == pytest.approx(reached / map_hw.size, abs=1e-6)
            assert 0 < reached < map_hw.size


def test_a_pixel_exactly_at_the_threshold_counts() -> None:
    even = torch.zeros(1, 2, 3, 3)  # both classes have probability one half, exactly
    assert measured(even, ConfidentShare("top1", 0.5, False)).item() == 1.0
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert measured(even, ConfidentShare("top1", above, False)).item() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_the_confidence_maps(seed: int) -> None:
    logits = random_logits(seed)
    found = measured(logits, MeanConfidence(), NormalisedEntropy())
    np.testing.assert_allclose(found[:, 0], confidence(logits, "top1").mean((1, 2)), atol=1e-6)
    probability = probabilities(logits)
    terms = -probability * np.log(probability) / np.log(5)
    np.testing.assert_allclose(found[:, 1], 1 - terms.sum(1).mean((1, 2)), atol=1e-6)


def test_no_signals_are_no_columns() -> None:
    assert measured(random_logits(0)).shape == (2, 0)


# ---- Edge enhancement


@pytest.mark.parametrize("seed", range(4))
def test_edges_are_pixels_that_differ_from_a_neighbour(seed: int) -> None:
    logits = random_logits(seed)
    found = PixelMaps(logits).edges_Bhw.numpy() == 1
    for label, edges in zip(logits.argmax(1).numpy(), found, strict=True):
        assert 0 < edges.mean() < 1
        np.testing.assert_array_equal(edges, plain_edges(label))
        np.testing.assert_array_equal(edges, find_boundaries(label, mode="thick"))


@pytest.mark.parametrize("shape", [(2, 5, 11, 14), (1, 3, 5, 5), (1, 2, 3, 9), (1, 2, 1, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_box_majority_is_the_literal_median_exactly(seed: int, shape: tuple[int, ...]) -> None:
    maps = PixelMaps(random_logits(seed, shape))
    top1 = maps.confidence("top1")
    # Observed values are thresholds too: the median then ties with one.
    observed = top1.flatten()[:: max(1, top1.numel() // 20)].tolist()
    for threshold in [0.3, 0.5, 0.7, 0.9, *observed]:
        found = maps.enhanced(maps.reaches("top1", threshold)).numpy()
        for image, label in enumerate(maps.labels_Bhw.numpy()):
            literal = literal_enhancement(top1[image].numpy(), plain_edges(label))
            np.testing.assert_array_equal(found[image] == 1, literal >= np.float32(threshold))


@pytest.mark.parametrize("kind", ["top1", "entropy"])
def test_the_enhanced_share_is_that_of_the_literal_median(kind: str) -> None:
    logits = random_logits(9)
    of = PixelMaps(logits).confidence(kind).numpy()
    changed = False
    for threshold in (0.2, 0.4, 0.6, 0.8):
        both = [ConfidentShare(kind, threshold, edges) for edges in (False, True)]
        plain, found = measured(logits, *both).T.tolist()
        for image, label in enumerate(logits.argmax(1).numpy()):
            literal = literal_enhancement(of[image], plain_edges(label))
            assert found[image] == np.float32((literal >= np.float32(threshold)).mean())
        changed |= plain != found
    assert changed


def test_enhancement_leaves_an_image_without_edges_alone() -> None:
    logits = random_logits(2)
    logits[:, 0] += 100
    both = [ConfidentShare("entropy", 0.9, edges) for edges in (False, True)]
    plain, enhanced = measured(logits, *both).T
    np.testing.assert_array_equal(plain, enhanced)


def test_a_lone_confident_edge_pixel_is_outvoted() -> None:
    logits = torch.zeros(1, 2, 7, 7)
    logits[0, 0] = 0.1
    logits[0, 1, 3, 3] = 9.0
    maps = PixelMaps(logits)
    confident = maps.reaches("top1", 0.9)
    assert confident.sum() == 1
    assert maps.enhanced(confident).sum() == 0


@pytest.mark.parametrize("native", [(11, 14), (22, 28), (30, 37)])
def test_at_full_resolution_band_and_window_grow_with_the_stride(native: tuple[int, int]) -> None:
    logits = random_logits(5, (1, 4, *native))
    maps = maps_at(FULL, logits, SIZE)
    stride = {11: 8, 22: 4, 30: 4}[native[0]]
    assert maps.stride == stride
    assert_classes(maps.labels_Bhw.numpy(), logits, SIZE)
    label = maps.labels_Bhw[0].numpy()
    structure = np.ones((stride, stride))
    # The paper's erosion, of what is no edge: of the edges themselves it would leave nothing.
    eroded = ndimage.binary_erosion(~plain_edges(label), structure, border_value=1)
    others = np.asarray(eroded, dtype=np.bool_)
    np.testing.assert_array_equal(maps.edges_Bhw[0].numpy() == 1, ~others)
    top1 = maps.confidence("top1")[0].numpy()
    for threshold in (0.5, 0.8):
        literal = literal_enhancement(top1, ~others, stride) >= np.float32(threshold)
        found = measured(logits, ConfidentShare("top1", threshold, True, resolution=FULL))
        assert found.item() == np.float32(literal.mean())


def canny_band(label: NDArray[np.int64], stride: int) -> NDArray[np.bool_]:
    """Eq. 8 with Canny's own edges of the label map, without smoothing as far as it goes."""
    edges = canny(label.astype(float), sigma=0.5, low_threshold=0.05, high_threshold=0.1)
    others = ~np.asarray(edges, dtype=np.bool_)
    eroded = ndimage.binary_erosion(others, np.ones((stride, stride)), border_value=1)
    return ~np.asarray(eroded, dtype=np.bool_)


def test_canny_differs_at_borders_and_by_a_pixel() -> None:
    """What docs/policies.md says of Canny: its band is a part of ours, all but a few pixels."""
    inside, outside, shares = [], [], []
    for seed in range(6):
        maps = maps_at(FULL, random_logits(seed, (1, 4, 11, 14)), SIZE)
        ours = maps.edges_Bhw[0].numpy() == 1
        label, top1 = maps.labels_Bhw[0].numpy(), maps.confidence("top1")[0].numpy()
        theirs = canny_band(label, maps.stride)
        inside.append((theirs & ours).sum() / theirs.sum())
        outside.append((ours & ~theirs).sum() / ours.sum())
        literal, identity = (
            literal_enhancement(top1, band, maps.stride) >= np.float32(0.7)
            for band in (theirs, ours)
        )
        np.testing.assert_array_equal(literal[theirs == ours], identity[theirs == ours])
        shares.append(abs(literal.mean() - identity.mean()))
    assert min(inside) > 0.99
    assert 0 < np.mean(outside) < 0.25
    assert 0 < max(shares) < 0.03


# ---- Variation of information


def label_logits(label: NDArray[np.integer], classes: int) -> Tensor:
    """Logits that predict these labels, (1, C, h, w)."""
    chosen = F.one_hot(torch.from_numpy(label.astype(np.int64)), classes)
    return chosen.permute(2, 0, 1)[None].float()


def regions(seed: int, classes: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    return random_logits(seed, (1, classes, *shape)).argmax(1)[0].numpy()


def difference(
    previous: NDArray[np.integer], label: NDArray[np.integer], classes: int = 5
) -> float:
    module = SignalModule(VariationOfInformation(), SIZE)
    before = torch.from_numpy(previous.astype(np.uint8))[None]
    return -module(label_logits(label, classes), before).item()


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (65, 65)])
def test_variation_of_information_is_scikit_images(classes: int, shape: tuple[int, int]) -> None:
    for seed in range(5):
        first, second = regions(seed, classes, shape), regions(seed + 9, classes, shape)
        expected = sum(variation_of_information(first, second))
        assert difference(first, second, classes) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equal_maps_do_not_vary() -> None:
    label = regions(1, 5, (20, 30))
    assert difference(label, label) == 0.0
    # A partition with other names is the same partition.
    assert difference((label + 1) % 5, label) == 0.0
    assert difference(np.zeros_like(label), np.full_like(label, 4)) == 0.0


def test_half_and_quarter_differ_by_one_bit() -> None:
    halves, quarters = np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)
    halves[2:], quarters[2:], quarters[:, 2:] = 1, 2, quarters[:, 2:] + 1
    quarters[2:, 2:] = 3
    assert difference(halves, quarters) == 1.0


def test_maps_of_unequal_size_meet_at_the_larger() -> None:
    small, large = regions(2, 5, (9, 14)), regions(3, 5, (12, 20))
    rows, columns = [y * 9 // 12 for y in range(12)], [x * 14 // 20 for x in range(20)]
    nearest = small[np.ix_(rows, columns)]
    expected = sum(variation_of_information(nearest, large))
    assert difference(small, large) == pytest.approx(expected, abs=1e-6)
    assert difference(large, small) == pytest.approx(expected, abs=1e-6)
    resized_small = resized(torch.from_numpy(small)[None], (12, 20))[0]
    np.testing.assert_array_equal(resized_small, nearest)


def test_comparing_without_an_exit_before_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="label map of the exit before"):
        VariationOfInformation().of(PixelMaps(random_logits(0)))


# ---- Names, policies, order, modules


def test_signals_are_named_as_documented() -> None:
    assert ConfidentShare("top1", 0.9, True).name == "share-top1-0.9-edges"
    assert ConfidentShare("entropy", 0.5, False).name == "share-entropy-0.5"
    assert ConfidentShare("top1", 0.5, False, resolution=FULL).name == "share-top1-0.5-full"
    assert [MeanConfidence().name, NormalisedEntropy().name] == ["mean-top1", "ne"]
    assert list(PAIR_SIGNALS) == ["vi"]


@pytest.mark.parametrize(
    "signal",
    [
        ConfidentShare("entropy", 0.75, True),
        ConfidentShare("top1", 0.1, False, resolution=FULL),
        MeanConfidence(),
        NormalisedEntropy(resolution=FULL),
        VariationOfInformation(),
    ],
)
def test_signals_round_trip_through_json(signal: Signal) -> None:
    assert signal_from_json(json.loads(json.dumps(signal.to_json()))) == signal


def test_manifests_say_what_a_share_is() -> None:
    assert ConfidentShare("entropy", 0.75, True).to_json() == {
        "name": "share-entropy-0.75-edges",
        "kind": "share",
        "confidence": "entropy",
        "pixel_threshold": 0.75,
        "edge_enhanced": True,
        "resolution": "native",
    }


def test_every_combination_is_configured_once_under_its_own_name() -> None:
    config = MemoiseConfig(
        pixel_thresholds=(0.5, 0.9),
        confidences=("top1", "entropy"),
        edges=(False, True),
        resolutions=("native", "full"),
    )
    names = [signal.name for signal in configured_signals(config)]
    assert len(names) == len(set(names)) == 16 + 2 + 2


def test_neighbouring_thresholds_have_names_of_their_own() -> None:
    config = MemoiseConfig(pixel_thresholds=(0.9999999, 1.0), edges=(False,))
    first, second, *_ = configured_signals(config)
    assert first.name != second.name


def test_policies_are_groups_of_signals() -> None:
    config = MemoiseConfig(pixel_thresholds=(0.5,), confidences=("top1", "entropy"))
    every = [*configured_signals(config), *PAIR_SIGNALS.values()]
    found = names_by_policy(signal.to_json() for signal in every)
    assert len(found["share"]) == 4
    assert found["share-top1"] == ("share-top1-0.5", "share-top1-0.5-edges")
    assert found["share-entropy-edges"] == ("share-entropy-0.5-edges",)
    assert [found["mean-top1"], found["ne"], found["vi"]] == [("mean-top1",), ("ne",), ("vi",)]
    # share-native has what share has.
    assert "share-native" in found
    assert "share-native" not in distinct(found)
    assert distinct(found)[0] == "share"


@dataclass(frozen=True)
class LeastConfident(Signal):
    """A signal of a user's own: the confidence of the least confident pixel."""

    kind: ClassVar[str] = "own_signal:LeastConfident"

    def of(self, maps: PixelMaps) -> Tensor:
        return maps.confidence("top1").amin((1, 2))


def test_a_signal_of_ones_own_needs_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_signal.py").write_text(
        "from tests.signals.test_signals import LeastConfident\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = MemoiseConfig(signals=("ne", LeastConfident.kind))
    found = configured_signals(config)
    assert [signal.name for signal in found] == ["ne", LeastConfident.kind]
    logits = random_logits(8)
    expected = confidence(logits, "top1").min((1, 2))
    np.testing.assert_allclose(measured(logits, *found)[:, 1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError.*in PYTHONPATH"),
        ("class X(Signal", "cannot be imported: SyntaxError"),
        ("class X(Signal): pass", "whose `kind` is that very text"),
        ("class X(Signal): kind = 'broken:X'", r"does not define `of\(self, maps\)`"),
        ("import os as X", "must be a subclass"),
    ],
)
def test_a_broken_class_is_refused(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(f"from mess.signals.registry import Signal\n{body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ConfigError, match=message):
        configured_signals(MemoiseConfig(signals=("broken:X",)))


def own(of: Callable[[PixelMaps], Any]) -> Signal:
    """A signal as if of a user's own, of one function."""
    members = {"kind": "own:X", "of": lambda _, maps: of(maps)}
    return type("X", (Signal,), members)()


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda maps: maps.confidence("top2"), "ValueError: no confidence is named 'top2'.*top1"),
        (lambda maps: maps.confidence("top1"), r"shape \(2, 8, 10\) for 2 images.*shape \(2,\)"),
        (lambda maps: float(maps.logits_BChw.max()), "gives [0-9.]+ for 2 images"),
        (
            lambda maps: maps.mean(maps.labels_Bhw + (0 if maps.logits_BChw.sum() > 0 else 1)),
            "ONNX",
        ),
    ],
)
def test_a_failing_signal_is_named_before_anything_is_computed(
    of: Callable[[PixelMaps], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"the signal 'own:X' .*{message}"):
        require_exportable([NormalisedEntropy(), own(of)], (64, 80), classes=5)


def test_a_signal_that_can_be_exported_is_let_through() -> None:
    require_exportable([own(lambda maps: maps.confidence("top1").amin((1, 2)))], (64, 80), 5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shares", "no signal is named 'shares'.*mean 'share'"),
        ("no_such_module:Signal", "'no_such_module:Signal' cannot be imported"),
        ("mess.signals.registry:Signals", "cannot be imported"),
        ("mess.signals.registry:NormalisedEntropy", "whose `kind` is that very text"),
        ("vi", "needs no memoising"),
    ],
)
def test_strange_signals_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured_signals(MemoiseConfig(signals=(kind,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConfidentShare("top1", 0.6, True),
        lambda: ConfidentShare("entropy", 0.6, False, resolution=FULL),
        MeanConfidence,
        NormalisedEntropy,
    ],
)
def test_the_exported_module_is_the_memoised_signal(make: Callable[[], Signal]) -> None:
    logits, signal = random_logits(4), make()
    found = SignalModule(signal, SIZE)(logits).numpy()
    np.testing.assert_array_equal(found, measured(logits, signal)[:, 0])
