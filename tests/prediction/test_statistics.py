"""Both ways to count a batch against torch's upsampling and plain counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mess.common.metrics import VOID
from mess.prediction import kernels as counting
from mess.prediction.compiled import CompiledStatistics
from mess.prediction.in_torch import TensorStatistics
from mess.prediction.interpolation import (
    _arithmetic,
    _Kernel,
    classes_at,
    grid_of,
    upsampled_classes,
)
from mess.prediction.statistics import BatchStatistics, ExitPrediction
from mess.signals.builtin import ConfidentShare, MeanConfidence, NormalisedEntropy
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from mess.signals.signal import Signal
from tests.seeds import seeded

SPECS: list[Signal] = [
    ConfidentShare("top1", 0.5, edge_enhanced=True, resolution="full"),
    *(
        ConfidentShare(kind, threshold, edges)
        for kind in ("top1", "entropy")
        for threshold in (0.3, 0.9)
        for edges in (False, True)
    ),
    NormalisedEntropy(),
    MeanConfidence(resolution="full"),
]
"""Those that are compiled, between others."""

Make = Callable[[Tensor, Tensor], BatchStatistics]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(params=["tensor", "compiled-1", "compiled-3"])
def make(request: pytest.FixtureRequest, pool: Executor) -> Make:
    kind, _, threads = request.param.partition("-")
    if kind == "tensor":
        return lambda labels, final: TensorStatistics(labels, final, SPECS)
    return lambda labels, final: CompiledStatistics(labels, final, SPECS, pool, int(threads))


def logits(
    seed: int, images: int, classes: int, native: tuple[int, int], *, rough: float = 0.3
) -> Tensor:
    """Regions of classes with noise, as exits give them."""
    generator = torch.Generator().manual_seed(seeded(seed))
    coarse = torch.randn(images, classes, 3, 4, generator=generator) * 4
    smooth = F.interpolate(coarse, size=native, mode="bicubic")
    return smooth + rough * torch.randn(smooth.shape, generator=generator)


def labels(seed: int, images: int, classes: int, full: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(seeded(seed))
    label_BHW = torch.randint(0, classes, (images, *full), generator=generator)
    label_BHW[torch.rand(images, *full, generator=generator) < 0.2] = VOID
    label_BHW[-1] = VOID
    return label_BHW


def check(make: Make, label_BHW: Tensor, final: Tensor, exits: dict[str, Tensor]) -> None:
    """Everything equals the plain definition, for every exit."""
    statistics = make(label_BHW, final)
    for name, logits_BChw in exits.items():
        statistics.add(name, logits_BChw, confidence_map=name == "final")
    found = statistics.collect()
    assert list(found) == list(exits)
    size = (label_BHW.shape[1], label_BHW.shape[2])

    def classes_of(logits_BChw: Tensor) -> np.ndarray:
        whole = F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)
        return whole.argmax(1).numpy()

    finals, truth_BHW = classes_of(final), label_BHW.numpy()
    for name, logits_BChw in exits.items():
        classes, prediction = logits_BChw.shape[1], found[name]
        for i, found_HW in enumerate(classes_of(logits_BChw)):
            valid = truth_BHW[i] != VOID
            predicted_C = np.bincount(found_HW[valid], minlength=classes)
            hits_C = np.bincount(found_HW[valid & (found_HW == truth_BHW[i])], minlength=classes)
            np.testing.assert_array_equal(prediction.predicted[i], predicted_C)
            np.testing.assert_array_equal(prediction.intersection[i], hits_C)
            assert prediction.agreement[i] == (found_HW == finals[i]).sum()
        np.testing.assert_array_equal(prediction.label_map, logits_BChw.argmax(1).numpy())
        np.testing.assert_array_equal(
            prediction.signals, measure(PixelMaps(logits_BChw), SPECS, size).numpy()
        )
        check_types(prediction)
        if name == "final":
            expected = (PixelMaps(logits_BChw).confidence("top1") * 255).round().numpy()
            np.testing.assert_array_equal(prediction.confidence_map, expected)
        else:
            assert prediction.confidence_map is None


def check_types(prediction: ExitPrediction) -> None:
    assert prediction.intersection.dtype == prediction.predicted.dtype == np.int32
    assert prediction.agreement.dtype == np.int32
    assert prediction.signals.dtype == np.float32
    assert prediction.label_map.dtype == np.uint8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("native", "full"),
    [
        ((12, 15), (90, 120)),
        ((9, 13), (70, 101)),
        ((20, 30), (20, 30)),
        ((20, 30), (7, 11)),
        ((1, 1), (9, 8)),
        ((1, 6), (33, 6)),
        ((33, 41), (50, 61)),
        ((2, 3), (128, 5)),
    ],
)
def test_counts_are_those_of_the_plain_definition(
    make: Make,
    native: tuple[int, int],
    full: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    for seed in range(3):
        final = logits(seed, 4, 7, native).contiguous(memory_format=layout)
        other = (final + logits(seed + 9, 4, 7, native)).contiguous(memory_format=layout)
        # An exit may have a resolution of its own.
        coarse = F.avg_pool2d(other, 2, ceil_mode=True)
        exits = {"other": other, "coarse": coarse, "final": final}
        check(make, labels(seed, 4, 7, full), final, exits)


@pytest.mark.parametrize("classes", [1, 2, 21, 150])
def test_any_number_of_classes(make: Make, classes: int) -> None:
    final = logits(1, 2, classes, (8, 9))
    check(make, labels(1, 2, classes, (60, 70)), final, {"a": logits(2, 2, classes, (8, 9))})


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: torch.zeros_like(x), id="all equal"),
        pytest.param(lambda x: torch.cat([0 * x[:1], x[1:]]), id="first image all equal"),
        pytest.param(lambda x: x * 1e-42, id="denormal"),
        pytest.param(lambda x: x.round(), id="ties"),
        pytest.param(lambda x: torch.cat([x[:, :3], x[:, :3], x[:, 6:]], 1), id="equal classes"),
        pytest.param(lambda x: x * 1e-30, id="tiny"),
        pytest.param(lambda x: x * 1e30, id="huge"),
        pytest.param(lambda x: x + 1e6, id="far from zero"),
        pytest.param(lambda x: x.masked_fill(x == x.max(), torch.inf), id="infinite"),
        pytest.param(lambda x: x.masked_fill(x < -3, -torch.inf), id="minus infinite"),
        pytest.param(lambda x: -x.abs(), id="negative"),
    ],
)
def test_pixels_too_close_to_call_are_torchs(make: Make, spoil: Callable[[Tensor], Tensor]) -> None:
    final = logits(3, 3, 7, (9, 12))
    spoilt = spoil(logits(4, 3, 7, (9, 12)))
    truth = labels(3, 3, 7, (72, 96))
    statistics = make(truth, spoilt)
    statistics.add("spoilt", spoilt, confidence_map=False)
    whole = F.interpolate(spoilt, size=(72, 96), mode="bilinear", align_corners=False)
    classes_BHW = whole.argmax(1)
    found = statistics.collect()["spoilt"]
    np.testing.assert_array_equal(found.label_map, spoilt.argmax(1).numpy())
    np.testing.assert_array_equal(
        found.signals, measure(PixelMaps(spoilt), SPECS, (72, 96)).numpy()
    )
    for i in range(3):
        valid = truth[i] != VOID
        expected = torch.bincount(classes_BHW[i][valid], minlength=7).numpy()
        np.testing.assert_array_equal(found.predicted[i], expected)
        hits = torch.bincount(classes_BHW[i][valid & (classes_BHW[i] == truth[i])], minlength=7)
        np.testing.assert_array_equal(found.intersection[i], hits.numpy())
    assert (found.agreement == 72 * 96).all()
    check(make, truth, final, {"final": final})


def doubtful_pixels(logits_BChw: Tensor, size: tuple[int, int]) -> int:
    """How many the compiled count leaves to torch."""
    images, classes, *native = logits_BChw.shape
    at = grid_of(logits_BChw, size)
    none = np.zeros((images, *size), np.uint8)
    reference = counting.Reference(none, counting.cell_counts(at, none, classes))
    tally = counting.Tally(
        np.zeros((images, classes), np.int32),
        np.zeros((images, classes), np.int32),
        np.zeros(images, np.int32),
        np.zeros((images, *native), np.uint8),
    )
    values = logits_BChw.permute(0, 2, 3, 1).contiguous().numpy()
    return len(counting.count(values, at, reference, reference, tally))


def test_hardly_any_pixel_is_too_close_to_call() -> None:
    """And where all are, as the tests above rely on, they all are listed."""
    usual = logits(0, 8, 21, (23, 30))
    assert doubtful_pixels(usual, (180, 240)) < 8
    assert doubtful_pixels(torch.zeros(2, 5, 12, 15), (90, 120)) == 2 * 90 * 120


def test_a_label_beyond_the_classes_is_refused(pool: Executor) -> None:
    truth = labels(5, 2, 4, (40, 50))
    truth[0, 3, 3] = 4
    with pytest.raises(ValueError, match="label 4; the exits have 4 classes"):
        CompiledStatistics(truth, logits(5, 2, 4, (6, 8)), [], pool, 2)


def test_not_a_number_is_counted_as_torch_counts_it(pool: Executor) -> None:
    final = logits(5, 2, 4, (6, 8))
    spoilt = final.clone()
    spoilt[0, 2, 3, 4] = torch.nan
    truth = labels(5, 2, 4, (40, 50))
    compiled = CompiledStatistics(truth, final, [], pool, 2)
    tensor = TensorStatistics(truth, final, [])
    for statistics in (compiled, tensor):
        statistics.add("spoilt", spoilt, confidence_map=False)
    ours, theirs = compiled.collect()["spoilt"], tensor.collect()["spoilt"]
    np.testing.assert_array_equal(ours.label_map, theirs.label_map)
    np.testing.assert_array_equal(ours.predicted, theirs.predicted)
    np.testing.assert_array_equal(ours.intersection, theirs.intersection)
    np.testing.assert_array_equal(ours.agreement, theirs.agreement)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [2, 3, 5, 21])
@pytest.mark.parametrize("threads", [1, 3])
def test_interpolation_is_torchs_to_a_few_roundings(
    classes: int, layout: torch.memory_format, threads: int
) -> None:
    """Whichever of torch's kernels it is, by layout, classes, threads and size."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seeded(classes))
    sizes = [((5, 9), (37, 70)), ((23, 30), (90, 120)), ((60, 60), (113, 113)), ((9, 9), (64, 64))]
    sizes += [((1, 1), (4, 5)), ((30, 3), (7, 300)), ((33, 41), (33, 41)), ((2, 3), (1000, 4))]
    sizes += [
        (tuple(rng.integers(1, 70, 2).tolist()), tuple(rng.integers(1, 300, 2).tolist()))
        for _ in range(20)
    ]
    try:
        for native, full in sizes:
            generator = torch.Generator().manual_seed(seeded(sum(full)))
            values = torch.randn(1, classes, *native, generator=generator)
            values = values.contiguous(memory_format=layout)
            whole = F.interpolate(values, size=full, mode="bilinear", align_corners=False)
            source = values[0].double().numpy()
            at = grid_of(values, full)
            for axis, found in enumerate(at):
                assert found.start[0] == 0
                assert found.start[-1] == full[axis]
            here = [
                np.repeat(np.arange(n), np.diff(a.start)) for n, a in zip(native, at, strict=True)
            ]
            there = [np.minimum(h + 1, n - 1) for h, n in zip(here, native, strict=True)]
            blend, size = np.zeros(whole.shape[1:]), np.zeros(whole.shape[1:])
            for rows, down in ((here[0], 1 - at.rows.weight), (there[0], at.rows.weight)):
                for columns, across in (
                    (here[1], 1 - at.columns.weight),
                    (there[1], at.columns.weight),
                ):
                    weight = down[:, np.newaxis].astype(float) * across.astype(float)
                    part = weight * source[:, rows][:, :, columns]
                    blend, size = blend + part, size + abs(part)
            # As far as `counting` allows for; weights of another kernel are further off.
            assert (abs(whole[0].numpy() - blend) <= 8 * 2.0**-24 * size + 1e-36).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [1, 2, 5, 21])
def test_single_pixels_are_those_of_the_whole_map(
    classes: int, layout: torch.memory_format
) -> None:
    rng = np.random.default_rng(seeded(0))
    for native, full in (((23, 30), (180, 240)), ((5, 6), (40, 50)), ((9, 9), (5, 70))):
        spoilt = logits(classes, 3, classes, native).round().contiguous(memory_format=layout)
        pixels = rng.integers(0, (3, *full), (500, 3))
        expected = upsampled_classes(spoilt, full).numpy()[tuple(pixels.T)]
        np.testing.assert_array_equal(classes_at(spoilt, full, pixels), expected)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="kernels of other processors are only asked for whole maps",
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [6, 11, 21])
def test_torch_is_seldom_asked_for_whole_maps(classes: int, layout: torch.memory_format) -> None:
    """The orders of operations of the usual kernels are known, so counting stays fast."""
    for native, full in (((23, 30), (180, 240)), ((45, 60), (360, 480)), ((65, 65), (520, 520))):
        values = torch.zeros(1, classes, *native).contiguous(memory_format=layout)
        assert _arithmetic(_Kernel.of(values, full)).orders is not None
