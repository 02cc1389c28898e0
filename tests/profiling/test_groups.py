"""Parts that are measured in groups, because memory does not hold all of their programs."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mess.profiling.timing
from mess.common.progress import Silent
from mess.export.segments import tensor_shapes
from mess.profiling.parts import Part, parts_of
from mess.profiling.timing import comparable, grouped, profile
from mess.runs.network import trained_network
from mess.runs.run import Run
from mess.runtime.onnx_program import OnnxProgram
from mess.signals.registry import configured_signals
from tests.seeds import seeded


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_every_part_once_and_the_reference_always(seed: int) -> None:
    rng = np.random.default_rng(seeded(seed))
    sizes = rng.integers(1, 100, rng.integers(1, 30)).tolist()
    reference, limit = int(rng.integers(len(sizes))), int(rng.integers(1, 400))
    groups = grouped(sizes, reference, limit)
    others = [index for group in groups for index in group if index != reference]
    assert others == [index for index in range(len(sizes)) if index != reference]
    for group in groups:
        assert group == sorted(group)
        assert group.count(reference) == 1
        assert sum(sizes[index] for index in group) <= limit or len(group) <= 2
    # No two neighbours would have fitted into one.
    for before, after in pairwise(groups):
        first = next(index for index in after if index != reference)
        assert sum(sizes[index] for index in (*before, first)) > limit


def test_what_fits_is_one_group_in_order() -> None:
    assert grouped([5, 1, 3, 2], 2, 11) == [[0, 1, 2, 3]]
    assert grouped([5], 0, 1) == [[0]]


def test_groups_are_as_if_the_machine_had_been_as_fast() -> None:
    seconds = np.random.default_rng(seeded(0)).uniform(1, 2, (7, 5))
    groups, slowness = [[0, 1, 2], [0, 3], [0, 4]], (1.0, 3.0, 1.5)
    steady = seconds[:, 0]
    measured = [
        factor * np.stack([steady, *(seconds[:, i] for i in group[1:])], axis=1)
        for factor, group in zip(slowness, groups, strict=True)
    ]
    found = comparable(groups, measured, 0)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index in range(1, 5):
        # The median of the three paces is that of the machine at 1.5.
        np.testing.assert_allclose(found[index], 1.5 * seconds[:, index])
    np.testing.assert_allclose(found[0], 1.5 * steady)


def test_one_group_is_what_was_measured() -> None:
    seconds = np.random.default_rng(seeded(1)).uniform(1, 2, (4, 3))
    found = comparable([[0, 1, 2]], [seconds], 1)
    assert all((found[index] == seconds[:, index]).all() for index in range(3))


def test_a_part_takes_its_weights_and_its_largest_tensor(made: Run) -> None:
    small, wide, large = (
        Part([], nn.Conv2d(4, channels, 1), {}, [], elements)
        for channels, elements in ((4, 100), (404, 100), (4, 1100))
    )
    assert wide.bytes - small.bytes == 2 * 4 * 400 * 5
    assert large.bytes - small.bytes == 4 * 4 * 1000
    network = trained_network(made, torch.device("cpu"))
    size = made.config.data.size
    parts = parts_of(network, size, configured_signals(made.config.memoise))
    by_name = {name: part for part in parts for name in part.names}
    shapes = tensor_shapes(network, size)
    whole = by_name["segment", f"0-{len(network.points)}"]
    assert whole.largest == max(math.prod(shape) for shape in shapes.values())
    (answer,) = [part for name, part in by_name.items() if name[0] == "answer"]
    assert answer.largest == 6 * math.prod(size)


def test_programs_of_a_group_are_gone_before_the_next(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the profile names the same parts, whatever groups they were measured in."""
    alive: weakref.WeakSet[OnnxProgram] = weakref.WeakSet()
    most = 0

    class Counted(OnnxProgram):
        def __init__(self, *arguments: Any) -> None:
            nonlocal most
            super().__init__(*arguments)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr("mess.runtime.onnx_program.OnnxProgram", Counted)
    network = trained_network(made, torch.device("cpu"))
    names = []
    for limit in (2**40, 0):
        monkeypatch.setattr(mess.profiling.timing, "GROUP_BYTES", limit)
        most = 0
        timings = profile(
            network, made.config.data.size, configured_signals(made.config.memoise),
            runtime="onnxruntime", threads=1, rounds=2, reporter=Silent(),
        )  # fmt: skip
        names.append([(timing.kind, timing.name) for timing in timings])
        assert all(timing.median_ms > 0 for timing in timings)
        if limit:
            assert most > 2
        else:
            assert most == 2  # the part and the reference
    assert names[0] == names[1]
