"""Both ways to count a batch against the plain definition of upsampling and plain counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mess.common.metrics import VOID
from mess.prediction.compiled import CompiledStatistics
from mess.prediction.in_torch import TensorStatistics
from mess.prediction.statistics import BatchStatistics, ExitPrediction
from mess.signals.builtin import ConfidentShare, MeanConfidence, NormalisedEntropy
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from mess.signals.signal import Signal
from tests.seeds import seeded
from tests.upsampling import clear, full_size

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


@pytest.fixture(params=[1, 3])
def compiled(request: pytest.FixtureRequest, pool: Executor) -> Make:
    return lambda labels, final: CompiledStatistics(labels, final, SPECS, pool, request.param)


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
    """Everything is what the plain definition says, for every exit, but for ties in torch."""
    statistics = make(label_BHW, final)
    for name, logits_BChw in exits.items():
        statistics.add(name, logits_BChw, confidence_map=name == "final")
    found = statistics.collect()
    assert list(found) == list(exits)
    size = (label_BHW.shape[1], label_BHW.shape[2])
    exact = isinstance(statistics, CompiledStatistics)
    finals, truth_BHW = full_size(final, size).argmax(1), label_BHW.numpy()
    none_B = np.zeros(len(final), np.intp)
    final_unsure_B = none_B if exact else (~clear(final, size)).sum((1, 2))
    for name, logits_BChw in exits.items():
        classes, prediction = logits_BChw.shape[1], found[name]
        unsure_B = none_B if exact else (~clear(logits_BChw, size)).sum((1, 2))
        assert (unsure_B < 0.01 * size[0] * size[1] + 2).all()
        for i, found_HW in enumerate(full_size(logits_BChw, size).argmax(1)):
            valid = truth_BHW[i] != VOID
            predicted_C = np.bincount(found_HW[valid], minlength=classes)
            hits_C = np.bincount(found_HW[valid & (found_HW == truth_BHW[i])], minlength=classes)
            assert prediction.predicted[i].sum() == valid.sum()
            # A pixel that changes sides leaves one class and enters another.
            assert abs(prediction.predicted[i] - predicted_C).sum() <= 2 * unsure_B[i]
            assert abs(prediction.intersection[i] - hits_C).sum() <= 2 * unsure_B[i]
            agreement = (found_HW == finals[i]).sum()
            assert abs(prediction.agreement[i] - agreement) <= unsure_B[i] + final_unsure_B[i]
            right = valid & (finals[i] == truth_BHW[i])
            lost = (right & (found_HW != truth_BHW[i])).sum()
            assert abs(prediction.lost[i] - lost) <= unsure_B[i] + final_unsure_B[i]
        at_native = np.where(logits_BChw.isnan(), -np.inf, logits_BChw.numpy())
        np.testing.assert_array_equal(prediction.label_map, at_native.argmax(1))
        if not logits_BChw.isnan().any():
            signals_BK = measure(PixelMaps(logits_BChw), SPECS, size).numpy()
            np.testing.assert_array_equal(prediction.signals, signals_BK)
        check_types(prediction)
        if name == "final":
            expected = (PixelMaps(logits_BChw).confidence("top1") * 255).round().numpy()
            np.testing.assert_array_equal(prediction.confidence_map, expected)
        else:
            assert prediction.confidence_map is None


def check_types(prediction: ExitPrediction) -> None:
    assert prediction.intersection.dtype == prediction.predicted.dtype == np.int32
    assert prediction.agreement.dtype == prediction.lost.dtype == np.int32
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
        ((2, 3), (40, 5)),
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


@pytest.mark.parametrize("full", [(90, 120), (61, 83), (12, 15)])
def test_lost_pixels_where_a_class_leads_all_over_a_cell_and_where_not(
    compiled: Make, full: tuple[int, int]
) -> None:
    """Labels are mostly what the final exit says: it is right, and the others are wrong in part."""
    final = logits(6, 3, 5, (12, 15), rough=0.05)
    label_BHW = torch.from_numpy(full_size(final, full).argmax(1))
    doubtful = torch.rand(label_BHW.shape, generator=torch.Generator().manual_seed(seeded(6)))
    label_BHW[doubtful < 0.2] = VOID
    label_BHW[doubtful > 0.9] = 0
    smooth = final + logits(7, 3, 5, (12, 15), rough=0.05)
    check(compiled, label_BHW, final, {"smooth": smooth, "rough": smooth + final.round()})
    statistics = compiled(label_BHW, final)
    statistics.add("final", final, confidence_map=False)
    statistics.add("none", torch.full_like(final, torch.nan), confidence_map=False)
    found = statistics.collect()
    assert not found["final"].lost.any()
    # What is no number answers class 0: what the final exit gets right of the others is lost.
    hits = found["final"].intersection
    np.testing.assert_array_equal(found["none"].lost, hits[:, 1:].sum(axis=1))
    assert found["none"].lost.any()


@pytest.mark.parametrize("classes", [1, 2, 21, 150])
def test_any_number_of_classes(make: Make, classes: int) -> None:
    final = logits(1, 2, classes, (8, 9))
    check(make, labels(1, 2, classes, (60, 70)), final, {"a": logits(2, 2, classes, (8, 9))})


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: torch.zeros_like(x), id="all equal"),
        pytest.param(lambda x: torch.cat([0 * x[:1], x[1:]]), id="first image all equal"),
        pytest.param(lambda x: x.round(), id="ties"),
        pytest.param(lambda x: torch.cat([x[:, :3], x[:, :3], x[:, 6:]], 1), id="equal classes"),
        pytest.param(lambda x: x[:, :1] * (1 + 2.0**-23 * x.round()), id="last digits"),
        pytest.param(lambda x: x[:, :1] + 2.0**-19 * x, id="about what rounding moves"),
        pytest.param(lambda x: x * 1e-42, id="denormal"),
        pytest.param(lambda x: x * 1e-30, id="tiny"),
        pytest.param(lambda x: x * 1e30, id="huge"),
        pytest.param(lambda x: (x * 1e38).clamp(-3e38, 3e38), id="differences overflow"),
        pytest.param(lambda x: x + 1e6, id="far from zero"),
        pytest.param(lambda x: -x.abs(), id="negative"),
        pytest.param(lambda x: x.masked_fill(x == x.max(), torch.inf), id="infinite"),
        pytest.param(lambda x: x.masked_fill(x < -3, -torch.inf), id="minus infinite"),
        pytest.param(lambda x: x.masked_fill(x > 6, torch.nan), id="not a number"),
        pytest.param(lambda x: torch.full_like(x, torch.nan), id="no number at all"),
    ],
)
def test_compiled_counts_are_exact_however_close_classes_are(
    compiled: Make, spoil: Callable[[Tensor], Tensor]
) -> None:
    """What is left out as too far behind changes nothing: not where rounding decides, either."""
    final, spoilt = logits(3, 3, 7, (9, 12)), spoil(logits(4, 3, 7, (9, 12)))
    for size in ((72, 96), (61, 83)):
        truth = labels(3, 3, 7, size)
        check(compiled, truth, spoilt, {"spoilt": spoilt, "other": final})
        check(compiled, truth, final, {"spoilt": spoilt})


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_every_pixel_counts_once_whatever_the_logits(make: Make, value: float) -> None:
    final = logits(5, 2, 4, (6, 8))
    spoilt = final.clone()
    spoilt[0, 2, 3, 4] = value
    truth = labels(5, 2, 4, (40, 50))
    statistics = make(truth, final)
    statistics.add("spoilt", spoilt, confidence_map=False)
    found = statistics.collect()["spoilt"]
    labelled = (truth != VOID).sum((1, 2)).numpy()
    np.testing.assert_array_equal(found.predicted.sum(1), labelled)
    assert (found.intersection <= found.predicted).all()


def test_a_label_beyond_the_classes_is_refused(pool: Executor) -> None:
    truth = labels(5, 2, 4, (40, 50))
    truth[0, 3, 3] = 4
    with pytest.raises(ValueError, match="label 4; the exits have 4 classes"):
        CompiledStatistics(truth, logits(5, 2, 4, (6, 8)), [], pool, 2)


def test_the_final_exits_classes_are_in_the_place_of_labels(pool: Executor) -> None:
    """Whatever the labels are, but where they are void, as on padding."""
    final = logits(8, 3, 5, (9, 13))
    other, truth = final + logits(9, 3, 5, (9, 13)), torch.zeros((3, 50, 70), dtype=torch.int64)
    truth[:, :4] = truth[:, :, 61:] = VOID
    counted = 46 * 61
    for statistics in (
        TensorStatistics(truth, final, SPECS, against_final=True),
        CompiledStatistics(truth, final, SPECS, pool, 2, against_final=True),
    ):
        for name, logits_BChw in (("other", other), ("final", final)):
            statistics.add(name, logits_BChw, confidence_map=False)
        found = statistics.collect()
        own_BC = found["final"].predicted
        np.testing.assert_array_equal(found["final"].intersection, own_BC)
        assert (own_BC.sum(1) == counted).all()
        assert (found["other"].predicted.sum(1) == counted).all()
        hits_B = found["other"].intersection.sum(1)
        np.testing.assert_array_equal(hits_B + found["other"].lost, counted)
        # Which counts on void, too.
        assert ((hits_B < found["other"].agreement) & (hits_B < counted)).all()
