"""The exit decision, whatever the signals and thresholds are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mess.signals.decision import answering_exit, leaves, threshold_between

FINITE = st.floats(-4, 4, width=32)
COARSE = st.integers(-3, 3).map(lambda eighths: eighths / 8)
"""Few values, so that signals meet thresholds exactly."""

SIGNAL = st.one_of(FINITE, COARSE)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[np.ndarray | None], list[float | None], int]:
    """Signals and thresholds of some exits, some of which nobody leaves; and how many images."""
    images, exits = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    signals: list[np.ndarray | None] = []
    thresholds: list[float | None] = []
    for _ in range(exits):
        decides = draw(st.booleans())
        signals.append(draw(arrays(np.float32, images, elements=SIGNAL)) if decides else None)
        thresholds.append(draw(SIGNAL) if decides else None)
    return signals, thresholds, images


@given(questions())
def test_the_first_exit_whose_threshold_is_reached_answers(
    asked: tuple[list[np.ndarray | None], list[float | None], int],
) -> None:
    signals, thresholds, images = asked
    expected = []
    for image in range(images):
        for exit_, (signal, threshold) in enumerate(zip(signals, thresholds, strict=True)):
            if signal is not None and threshold is not None and signal[image] >= threshold:
                expected.append(exit_)
                break
        else:
            expected.append(len(thresholds))
    assert answering_exit(signals, thresholds, images).tolist() == expected


@given(arrays(np.float32, st.integers(2, 30), elements=SIGNAL), st.data())
def test_a_threshold_between_neighbours_leaves_the_upper_ones(
    signals: np.ndarray, data: st.DataObject
) -> None:
    distinct = np.unique(signals)
    if len(distinct) < 2:
        return
    at = data.draw(st.integers(1, len(distinct) - 1))
    threshold = threshold_between(distinct[at - 1], distinct[at])
    np.testing.assert_array_equal(leaves(signals, threshold), signals >= distinct[at])


@given(st.floats(-4, 4, width=32))
def test_a_threshold_separates_signals_that_nothing_lies_between(signal: float) -> None:
    """In single precision it would be one of the two."""
    both = np.array([signal, np.nextafter(np.float32(signal), np.float32(np.inf))], np.float32)
    threshold = threshold_between(*both.tolist())
    assert leaves(both, threshold).tolist() == [False, True]
