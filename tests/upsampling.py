"""Classes at full size by the definition, and where rounding may decide them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mess.common.resizing import tolerance, upsampled


def full_size(logits_BChw: Tensor, size: tuple[int, int]) -> NDArray[np.floating]:
    """Logits at `size`, (B, C, H, W), where what is not a number leads nowhere."""
    with np.errstate(invalid="ignore", over="ignore"):
        logits_BCHW = upsampled(logits_BChw.numpy(), size)
    return np.where(np.isnan(logits_BCHW), -np.inf, logits_BCHW)


def clear(logits_BChw: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose best class leads by more than torch or onnxruntime may be off, (B, H, W)."""
    images, classes, *native = logits_BChw.shape
    if classes == 1:
        return np.ones((images, *size), np.bool_)
    limit = 2 * tolerance((native[0], native[1])) * float(logits_BChw.abs().max())
    best_B2HW = torch.from_numpy(full_size(logits_BChw, size)).topk(2, dim=1).values
    return (best_B2HW[:, 0] - best_B2HW[:, 1] > limit).numpy()


def assert_classes(
    found_BHW: NDArray[np.integer], logits_BChw: Tensor, size: tuple[int, int]
) -> None:
    """The classes of upsampled logits are the definition's, wherever that is clear."""
    expected_BHW, clear_BHW = full_size(logits_BChw, size).argmax(1), clear(logits_BChw, size)
    assert found_BHW.shape == expected_BHW.shape
    assert clear_BHW.mean() > 0.99
    np.testing.assert_array_equal(found_BHW[clear_BHW], expected_BHW[clear_BHW])
