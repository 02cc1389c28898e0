"""Losses against their definitions, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mess.losses import DistillationTarget, PixelGrid, cross_entropy, upsample
from mess.metrics import VOID

B, C, H, W = 2, 4, 19, 26


def random(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(void: float = 0.2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, C, (B, H, W), generator=generator)
    return label.masked_fill(torch.rand(B, H, W, generator=generator) < void, VOID)


# ---- Upsampling


@pytest.mark.parametrize("native", [(3, 4), (1, 1), (5, 26), (19, 26), (30, 40)])
def test_upsampling_equals_interpolate(native: tuple[int, int]) -> None:
    logits = random(B, C, *native)
    expected = F.interpolate(logits, size=(H, W), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(logits, (H, W)), expected, rtol=1e-5, atol=1e-5)


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
    whole = F.interpolate(logits, size=(H, W), mode="bilinear", align_corners=False)
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
    whole = F.interpolate(logits, size=(H, W), mode="bilinear", align_corners=False)
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
    found = DistillationTarget(teacher, label, alpha, grid).loss(ours)
    found.backward()
    expected = eq3(theirs, teacher, label, alpha, grid)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert theirs.grad is not None
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_one_target_serves_exits_of_several_resolutions() -> None:
    teacher, label = random(B, C, 5, 6, seed=3), labels()
    target = DistillationTarget(teacher, label, 0.5)
    for seed, native in enumerate([(4, 5), (9, 13), (4, 5)]):
        student = random(B, C, *native, seed=seed)
        expected = eq3(student, teacher, label, 0.5, PixelGrid())
        torch.testing.assert_close(target.loss(student), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_all_void_batch_costs_nothing_and_moves_nothing(alpha: float) -> None:
    student = random(B, C, 5, 6).requires_grad_()
    void = torch.full((B, H, W), VOID)
    loss = DistillationTarget(random(B, C, 5, 6, seed=3), void, alpha).loss(student)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0


def test_a_student_that_is_the_teacher_has_no_divergence() -> None:
    teacher = random(B, C, 5, 6)
    loss = DistillationTarget(teacher, labels(), 0.0).loss(teacher.clone())
    assert abs(loss.item()) < 1e-5


def test_hard_labels_count_only_where_the_teacher_is_right() -> None:
    label = labels(void=0.0)
    wrong = F.one_hot((label + 1) % C, C).permute(0, 3, 1, 2).float() * 9
    loss = DistillationTarget(wrong, label, 1.0).loss(random(B, C, H, W))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_learns_nothing() -> None:
    teacher = random(B, C, 5, 6, seed=3).requires_grad_()
    DistillationTarget(teacher, labels(), 0.5).loss(random(B, C, 5, 6).requires_grad_()).backward()
    assert teacher.grad is None


def test_a_confident_teacher_and_student_stay_finite() -> None:
    student = (1000 * random(B, C, 5, 6)).requires_grad_()
    loss = DistillationTarget(1000 * random(B, C, 5, 6, seed=3), labels(), 0.5).loss(student)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
