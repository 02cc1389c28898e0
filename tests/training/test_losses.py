"""Losses against their definitions, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mess.common.metrics import VOID
from mess.common.resizing import tolerance, upsampled
from mess.training.losses import (
    Mixture,
    PixelGrid,
    SoftTarget,
    cross_entropy,
    exit_loss,
    mixture,
    upsample,
)
from tests.seeds import seeded

B, C, H, W = 2, 4, 19, 26


def random(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seeded(seed)))


def labels(void: float = 0.2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seeded(seed))
    label = torch.randint(0, C, (B, H, W), generator=generator)
    return label.masked_fill(torch.rand(B, H, W, generator=generator) < void, VOID)


# ---- Upsampling


def full_size(logits: Tensor) -> Tensor:
    """Logits at H×W by the definition."""
    return torch.from_numpy(upsampled(logits.numpy(), (H, W)))


@pytest.mark.parametrize("native", [(3, 4), (1, 1), (5, 26), (19, 26), (30, 40)])
def test_upsampling_is_the_definition_to_the_tolerance(native: tuple[int, int]) -> None:
    logits = random(B, C, *native)
    limit = tolerance(native) * float(logits.abs().max())
    torch.testing.assert_close(upsample(logits, (H, W)), full_size(logits), rtol=0, atol=limit)


def test_upsampling_has_the_gradient_of_interpolate() -> None:
    ours, theirs = random(B, C, 3, 4).requires_grad_(), random(B, C, 3, 4).requires_grad_()
    weight = random(B, C, H, W, seed=2)
    (upsample(ours, (H, W)) * weight).sum().backward()
    whole = F.interpolate(theirs, size=(H, W), mode="bilinear", align_corners=False)
    (whole * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [PixelGrid(2), PixelGrid(3, 1, 2), PixelGrid(4, 3, 0)])
def test_a_grid_takes_every_nth_pixel_from_its_offset(grid: PixelGrid) -> None:
    logits = random(B, C, 5, 7)
    whole = full_size(logits)
    rows = range(grid.row, H, grid.stride)
    columns = range(grid.column, W, grid.stride)
    found = upsample(logits, (H, W), grid)
    assert found.shape == (B, C, len(rows), len(columns))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            torch.testing.assert_close(
                found[:, :, i, j], whole[:, :, row, column], rtol=1e-5, atol=1e-5
            )


def test_upsampling_takes_channels_last_features() -> None:
    logits = random(B, C, 5, 7)
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsample(last, (H, W)), upsample(logits, (H, W)))


# ---- Cross-entropy


def test_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    logits, label = random(B, C, 5, 7), labels()
    whole = full_size(logits)
    expected = F.cross_entropy(whole, label, ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits, label), expected)


def test_a_batch_without_labels_costs_nothing_and_moves_nothing() -> None:
    logits = random(B, C, 5, 7).requires_grad_()
    loss = cross_entropy(logits, torch.full((B, H, W), VOID))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


# ---- Positive filtering distillation


def eq3(student: Tensor, teacher: Tensor, label: Tensor, alpha: float, grid: PixelGrid) -> Tensor:
    """Eq. 3 to the letter, pixel by pixel, averaged over the pixels that are not void."""
    size = (label.shape[1], label.shape[2])
    ours = F.interpolate(student, size=size, mode="bilinear", align_corners=False)
    theirs = F.interpolate(teacher, size=size, mode="bilinear", align_corners=False)
    terms = []
    for image in range(label.shape[0]):
        for row in range(grid.row, size[0], grid.stride):
            for column in range(grid.column, size[1], grid.stride):
                truth = int(label[image, row, column])
                if truth == VOID:
                    continue
                mine = ours[image, :, row, column].log_softmax(0)
                soft = theirs[image, :, row, column].softmax(0)
                divergence = (soft * (soft.log() - mine)).sum()
                correct = int(theirs[image, :, row, column].argmax()) == truth
                terms.append(alpha * correct * -mine[truth] + (1 - alpha) * divergence)
    return torch.stack(terms).mean() if terms else 0.0 * student.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("grid", [PixelGrid(), PixelGrid(3, 1, 2)])
@pytest.mark.parametrize("native", [(4, 5), (9, 13)])
def test_distillation_is_eq3_in_value_and_gradient(
    alpha: float, grid: PixelGrid, native: tuple[int, int]
) -> None:
    teacher, label = random(B, C, 5, 6, seed=3), labels()
    ours, theirs = random(B, C, *native).requires_grad_(), random(B, C, *native).requires_grad_()
    found = SoftTarget(teacher, label, mixture("pfd", alpha), grid).loss(ours)
    found.backward()
    expected = eq3(theirs, teacher, label, alpha, grid)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert theirs.grad is not None
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_one_target_serves_exits_of_several_resolutions() -> None:
    teacher, label = random(B, C, 5, 6, seed=3), labels()
    target = SoftTarget(teacher, label, mixture("pfd", 0.5))
    for seed, native in enumerate([(4, 5), (9, 13), (4, 5)]):
        student = random(B, C, *native, seed=seed)
        expected = eq3(student, teacher, label, 0.5, PixelGrid())
        torch.testing.assert_close(target.loss(student), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_all_void_batch_costs_nothing_and_moves_nothing(alpha: float) -> None:
    student = random(B, C, 5, 6).requires_grad_()
    void = torch.full((B, H, W), VOID)
    loss = SoftTarget(random(B, C, 5, 6, seed=3), void, mixture("pfd", alpha)).loss(student)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0


def test_a_student_that_is_the_teacher_has_no_divergence() -> None:
    teacher = random(B, C, 5, 6)
    loss = SoftTarget(teacher, labels(), mixture("pfd", 0.0)).loss(teacher.clone())
    assert abs(loss.item()) < 1e-5


def test_hard_labels_count_only_where_the_teacher_is_right() -> None:
    label = labels(void=0.0)
    wrong = F.one_hot((label + 1) % C, C).permute(0, 3, 1, 2).float() * 9
    loss = SoftTarget(wrong, label, mixture("pfd", 1.0)).loss(random(B, C, H, W))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_learns_nothing() -> None:
    teacher = random(B, C, 5, 6, seed=3).requires_grad_()
    SoftTarget(teacher, labels(), mixture("pfd", 0.5)).loss(
        random(B, C, 5, 6).requires_grad_()
    ).backward()
    assert teacher.grad is None


def test_a_confident_teacher_and_student_stay_finite() -> None:
    student = (1000 * random(B, C, 5, 6)).requires_grad_()
    loss = SoftTarget(1000 * random(B, C, 5, 6, seed=3), labels(), mixture("pfd", 0.5)).loss(
        student
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


# ---- The other losses of the paper's Table 6


def mixed(student: Tensor, teacher: Tensor, label: Tensor, mix: Mixture, weights: Tensor) -> Tensor:
    """The mixture to the letter, from whole maps."""
    size = (label.shape[1], label.shape[2])
    ours = F.interpolate(student, size=size, mode="bilinear", align_corners=False).log_softmax(1)
    theirs = F.interpolate(teacher, size=size, mode="bilinear", align_corners=False)
    valid = label != VOID
    truth = label.where(valid, 0)
    hard = -ours.gather(1, truth.unsqueeze(1))[:, 0] * weights[truth]
    if mix.filtered:
        hard = hard * (theirs.argmax(1) == label)
    soft = (theirs.softmax(1) * (theirs.log_softmax(1) - ours)).sum(1)
    return (mix.cross_entropy * hard + mix.distillation * soft)[valid].mean()


@pytest.mark.parametrize("name", ["pfd", "ce", "kd", "self-distill"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_named_loss_is_its_mixture(name: str, weighted: bool) -> None:
    teacher, label = random(B, C, 5, 6, seed=3), labels()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    ours, theirs = random(B, C, 9, 13).requires_grad_(), random(B, C, 9, 13).requires_grad_()
    found = exit_loss(name, teacher, label, alpha=0.3, class_weights=weights).loss(ours)
    found.backward()
    plain = torch.ones(C) if weights is None else weights
    expected = mixed(theirs, teacher, label, mixture(name, 0.3), plain)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_the_mixtures_differ() -> None:
    teacher, label, student = random(B, C, 5, 6, seed=3), labels(), random(B, C, 9, 13)
    names = ("pfd", "ce", "kd", "self-distill", "lovasz")
    losses = [exit_loss(name, teacher, label, alpha=0.3).loss(student).item() for name in names]
    assert len({round(loss, 3) for loss in losses}) == len(names)


def test_cross_entropy_as_an_exit_loss_is_that_of_the_final_exit() -> None:
    label, student = labels(), random(B, C, 9, 13)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    for given in (None, weights):
        found = exit_loss("ce", student, label, class_weights=given).loss(student)
        torch.testing.assert_close(found, cross_entropy(student, label, given))


# ---- Lovász-Softmax


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of a class if exactly the pixels `wrong` are mistaken."""
    predicted = truth ^ wrong
    return 1 - len(truth & predicted) / len(truth | predicted) if truth | predicted else 0.0


def lovasz(student: Tensor, label: Tensor, grid: PixelGrid) -> float:
    """The Lovász extension by its definition: pixels join the mistaken ones by falling error."""
    size = (label.shape[1], label.shape[2])
    whole = F.interpolate(student, size=size, mode="bilinear", align_corners=False).softmax(1)
    chosen = label[:, grid.rows, grid.columns].flatten()
    probability = whole[:, :, grid.rows, grid.columns].movedim(1, 0).flatten(1)
    valid = [p for p in range(len(chosen)) if chosen[p] != VOID]
    losses = []
    for k in range(student.shape[1]):
        truth = {p for p in valid if chosen[p] == k}
        if not truth:
            continue
        error = {p: abs((p in truth) - float(probability[k, p])) for p in valid}
        wrong: set[int] = set()
        total = before = 0.0
        for p in sorted(valid, key=lambda p: -error[p]):
            wrong.add(p)
            now = jaccard_loss(wrong, truth)
            total += error[p] * (now - before)
            before = now
        losses.append(total)
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("grid", [PixelGrid(), PixelGrid(3, 1, 2)])
@pytest.mark.parametrize("absent", [False, True])
def test_lovasz_softmax_is_its_definition(grid: PixelGrid, absent: bool) -> None:
    label = labels()
    if absent:
        label[label == 2] = VOID
    student = random(B, C, 5, 6)
    found = exit_loss("lovasz", student, label, grid=grid).loss(student)
    assert found.item() == pytest.approx(lovasz(student, label, grid), abs=1e-5)


def test_lovasz_softmax_falls_along_its_gradient_to_0_for_a_perfect_exit() -> None:
    label = labels()
    student = random(B, C, H, W).requires_grad_()
    loss = exit_loss("lovasz", student, label).loss(student)
    loss.backward()
    assert student.grad is not None
    step = exit_loss("lovasz", student, label).loss((student - 50 * student.grad).detach())
    assert step < loss
    perfect = F.one_hot(label.where(label != VOID, 0), C).permute(0, 3, 1, 2).float() * 50
    assert exit_loss("lovasz", perfect, label).loss(perfect).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["ce", "kd", "self-distill", "lovasz"])
def test_no_loss_is_moved_by_a_batch_without_labels(name: str) -> None:
    student = random(B, C, 5, 6).requires_grad_()
    void = torch.full((B, H, W), VOID)
    loss = exit_loss(name, random(B, C, 5, 6, seed=3), void).loss(student)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0
