"""The exit decision: boundary, precision and order."""

from __future__ import annotations

import numpy as np
import pytest

from mess.signals.decision import answering_exit, leaves, threshold_between
from tests.seeds import seeded


def first_that_leaves(signals: list[list[float]], thresholds: list[float]) -> list[int]:
    """The definition, image by image: the first exit whose signal reaches its threshold."""
    answers = []
    for image in range(len(signals[0])):
        answer = len(thresholds)
        for index, threshold in enumerate(thresholds):
            if signals[index][image] >= threshold:
                answer = index
                break
        answers.append(answer)
    return answers


def test_an_image_leaves_exactly_at_the_threshold() -> None:
    assert leaves(0.5, 0.5)
    assert not leaves(np.nextafter(0.5, 0.0), 0.5)
    assert leaves(np.nextafter(0.5, 1.0), 0.5)


def test_float32_signals_are_compared_in_float64() -> None:
    # As float32, 0.7 is a little less than 0.7; comparing in float32 would call them equal.
    signal = np.array([0.7], np.float32)
    assert (signal >= 0.7).all()
    assert not np.any(leaves(signal, 0.7))
    assert np.all(leaves(signal, float(signal[0])))


def test_an_array_and_its_elements_decide_alike() -> None:
    rng = np.random.default_rng(seeded(0))
    signals = rng.random(200).astype(np.float32)
    for threshold in [*signals[:20].tolist(), 0.0, 1.0]:
        together = np.asarray(leaves(signals, threshold))
        alone = [bool(leaves(float(signal), threshold)) for signal in signals]
        assert together.tolist() == alone


@pytest.mark.parametrize("early", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_answering_exit_is_the_first_that_reaches_its_threshold(early: int, seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    # Few distinct values: ties with the thresholds are common.
    signals = [(rng.integers(0, 5, 60) / 4).astype(np.float32) for _ in range(early)]
    thresholds = (rng.integers(1, 5, early) / 4).tolist()
    answer = answering_exit(signals, thresholds, 60)
    assert answer.tolist() == first_that_leaves([s.tolist() for s in signals], thresholds)
    assert len(set(answer.tolist())) > 1


def test_the_shallower_exit_wins_when_both_would_answer() -> None:
    confident = np.array([1.0], np.float32)
    assert answering_exit([confident, confident], [0.5, 0.5], 1).tolist() == [0]


def test_a_single_exit_answers_everything() -> None:
    assert answering_exit([], [], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (0.25, 0.75),
        (0.0, np.float32(1e-45)),
        (np.nextafter(np.float32(1), np.float32(0)), np.float32(1)),
        (np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(1))),
        (-0.5, -0.25),
    ],
)
def test_a_threshold_between_two_signals_separates_them(lower: float, upper: float) -> None:
    threshold = threshold_between(lower, upper)
    assert leaves(np.array([lower, upper], np.float32), threshold).tolist() == [False, True]
    assert threshold == pytest.approx((float(lower) + float(upper)) / 2)
