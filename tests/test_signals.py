"""Confidence signals against numpy, loops and the literal median."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mess.config import MemoiseConfig
from mess.signal_spec import SignalSpec, configured_signals
from mess.signals import (
    SignalModule,
    enhance,
    entropy_confidence,
    semantic_edges,
    signals,
    top1_confidence,
)


def random_logits(seed: int, shape: tuple[int, ...] = (2, 5, 11, 14)) -> Tensor:
    """Smooth enough for regions, rough enough for edges everywhere, border included."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=shape)
    smooth = ndimage.gaussian_filter(rough, (0, 0, 1.2, 1.2))
    return torch.from_numpy(6 * smooth + 0.5 * rough).float()


def softmax(logits: Tensor) -> NDArray[np.float64]:
    exact = np.exp(logits.numpy().astype(np.float64))
    return exact / exact.sum(1, keepdims=True)


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
    confidence: NDArray[np.float32], label: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Eqs. 8-9: near edges, the median of the 5x5 window, borders replicated."""
    median = ndimage.median_filter(confidence, size=5, mode="nearest")
    return np.where(plain_edges(label), median, confidence)


# ---- Pixel confidence


def test_top1_is_the_largest_probability() -> None:
    logits = random_logits(0)
    np.testing.assert_allclose(top1_confidence(logits), softmax(logits).max(1), rtol=1e-5)


def test_entropy_confidence_is_one_minus_normalised_entropy() -> None:
    logits = random_logits(1)
    probability = softmax(logits)
    entropy = -(probability * np.log(probability)).sum(1)
    np.testing.assert_allclose(entropy_confidence(logits), 1 - entropy / math.log(5), atol=1e-5)


def test_entropy_confidence_reaches_its_ends() -> None:
    certain = torch.tensor([0.0, 200.0, 0.0]).view(1, 3, 1, 1)
    assert entropy_confidence(certain).item() == 1.0
    assert entropy_confidence(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(0.0, abs=1e-6)


# ---- Shares


@pytest.mark.parametrize("seed", range(3))
def test_a_share_counts_pixels_that_reach_the_threshold(seed: int) -> None:
    logits = random_logits(seed)
    found = signals(logits, [SignalSpec("top1", 0.6, False), SignalSpec("entropy", 0.4, False)])
    assert found.shape == (2, 2)
    assert found.dtype == torch.float32
    for image in range(2):
        top1 = top1_confidence(logits)[image].flatten().tolist()
        certain = entropy_confidence(logits)[image].flatten().tolist()
        assert found[image, 0].item() == pytest.approx(sum(c >= 0.6 for c in top1) / len(top1))
        assert found[image, 1].item() == pytest.approx(sum(c >= 0.4 for c in certain) / len(top1))
        assert 0 < found[image, 0] < 1


def test_a_pixel_exactly_at_the_threshold_counts() -> None:
    even = torch.zeros(1, 2, 3, 3)  # both classes have probability one half, exactly
    assert signals(even, [SignalSpec("top1", 0.5, False)]).item() == 1.0
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert signals(even, [SignalSpec("top1", above, False)]).item() == 0.0


def test_no_signals_are_no_columns() -> None:
    assert signals(random_logits(0), []).shape == (2, 0)


# ---- Edge enhancement


@pytest.mark.parametrize("seed", range(4))
def test_edges_are_pixels_that_differ_from_a_neighbour(seed: int) -> None:
    logits = random_logits(seed)
    found = semantic_edges(logits).numpy()
    for image in range(2):
        expected = plain_edges(logits[image].argmax(0).numpy())
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(found[image] == 1, expected)


@pytest.mark.parametrize("shape", [(2, 5, 11, 14), (1, 3, 5, 5), (1, 2, 3, 9), (1, 2, 1, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_box_majority_is_the_literal_median_exactly(seed: int, shape: tuple[int, ...]) -> None:
    logits = random_logits(seed, shape)
    confidence = top1_confidence(logits)
    labels = logits.argmax(1).numpy()
    # Observed values are thresholds too: the median then ties with one.
    observed = confidence.flatten()[:: max(1, confidence.numel() // 20)].tolist()
    for threshold in [0.3, 0.5, 0.7, 0.9, *observed]:
        confident = (confidence >= threshold).float()
        found = enhance(confident, semantic_edges(logits)).numpy()
        for image in range(shape[0]):
            literal = literal_enhancement(confidence[image].numpy(), labels[image])
            np.testing.assert_array_equal(found[image] == 1, literal >= np.float32(threshold))


@pytest.mark.parametrize("kind", ["top1", "entropy"])
def test_the_enhanced_share_is_that_of_the_literal_median(kind: str) -> None:
    logits = random_logits(9)
    of = {"top1": top1_confidence, "entropy": entropy_confidence}[kind](logits).numpy()
    changed = False
    for threshold in (0.2, 0.4, 0.6, 0.8):
        plain, found = signals(
            logits, [SignalSpec(kind, threshold, edges) for edges in (False, True)]
        ).T.tolist()
        for image in range(2):
            literal = literal_enhancement(of[image], logits[image].argmax(0).numpy())
            assert found[image] == np.float32((literal >= np.float32(threshold)).mean())
        changed |= plain != found
    assert changed


def test_enhancement_leaves_an_image_without_edges_alone() -> None:
    logits = random_logits(2)
    logits[:, 0] += 100
    specs = [SignalSpec("entropy", 0.9, False), SignalSpec("entropy", 0.9, True)]
    plain, enhanced = signals(logits, specs).T
    assert torch.equal(plain, enhanced)


def test_a_lone_confident_edge_pixel_is_outvoted() -> None:
    label = torch.zeros(7, 7, dtype=torch.int64)
    label[3, 3] = 1
    edges = torch.from_numpy(plain_edges(label.numpy())).float()
    confident = torch.zeros(7, 7)
    confident[3, 3] = 1
    assert enhance(confident[None], edges[None]).sum() == 0


# ---- Names, order, modules


def test_signals_are_named_as_documented() -> None:
    assert SignalSpec("top1", 0.9, True).name == "share-top1-0.9-edges"
    assert SignalSpec("entropy", 0.5, False).name == "share-entropy-0.5"


def test_specs_round_trip_through_json() -> None:
    spec = SignalSpec("entropy", 0.75, True)
    assert SignalSpec.from_json(spec.to_json()) == spec
    assert spec.to_json() == {
        "name": "share-entropy-0.75-edges",
        "kind": "entropy",
        "pixel_threshold": 0.75,
        "edge_enhanced": True,
    }


def test_every_combination_is_configured_once_under_its_own_name() -> None:
    config = MemoiseConfig(
        pixel_thresholds=(0.5, 0.9), confidences=("top1", "entropy"), edges=(False, True)
    )
    names = [spec.name for spec in configured_signals(config)]
    assert len(names) == len(set(names)) == 8


def test_neighbouring_thresholds_have_names_of_their_own() -> None:
    config = MemoiseConfig(pixel_thresholds=(0.9999999, 1.0), edges=(False,))
    first, second = configured_signals(config)
    assert first.name != second.name


@pytest.mark.parametrize("edges", [False, True])
def test_the_exported_module_is_the_memoised_signal(edges: bool) -> None:
    logits, spec = random_logits(4), SignalSpec("top1", 0.6, edges)
    assert torch.equal(SignalModule(spec)(logits), signals(logits, [spec])[:, 0])
