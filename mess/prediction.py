"""The prediction pass: one run of the network, the sufficient statistics of every exit.

Shapes: B images, C classes, K signals, H×W pixels of the input, h×w native output pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mess.exits import FINAL
from mess.maps import compress
from mess.metrics import VOID
from mess.network import OverprovisionedNetwork
from mess.signal_spec import SignalSpec
from mess.signals import signals, top1_confidence


@dataclass(frozen=True, kw_only=True)
class ExitPrediction:
    """What one exit predicted on the images of a batch."""

    intersection: NDArray[np.int32]
    """(B, C): pixels of each class that label and prediction share, void left out."""
    predicted: NDArray[np.int32]
    """(B, C): pixels predicted as each class, void left out."""
    agreement: NDArray[np.int32]
    """(B,): pixels whose class equals the final exit's, void or not."""
    signals: NDArray[np.float32]
    """(B, K)."""
    label_map: NDArray[np.uint8]
    """(B, h, w): classes at native output resolution."""
    confidence_map: NDArray[np.uint8] | None
    """(B, h, w): top-1 probability in 255ths, for the exits that were asked for."""

    def rows(
        self, exit_id: str, image_ids: Sequence[str], *, label_maps: bool
    ) -> list[dict[str, Any]]:
        """One row of predictions/*.parquet for each image of the batch."""
        return [
            {
                "exit_id": exit_id,
                "image_id": image_id,
                "intersection": self.intersection[i],
                "predicted": self.predicted[i],
                "agreement": int(self.agreement[i]),
                "signals": self.signals[i],
                "label_map": compress(self.label_map[i]) if label_maps else None,
                "confidence_map": (
                    None if self.confidence_map is None else compress(self.confidence_map[i])
                ),
            }
            for i, image_id in enumerate(image_ids)
        ]


def predict(
    network: OverprovisionedNetwork,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    specs: Sequence[SignalSpec],
    *,
    device: torch.device,
    exits: Sequence[str] | None = None,
    confidence_maps: Sequence[str] = (),
) -> Iterator[tuple[NDArray[np.int64], dict[str, ExitPrediction]]]:
    """Image indices and the predictions of every exit, batch by batch.

    `batches` give images (B, 3, H, W), labels (B, H, W) and indices (B,). The class of a pixel is
    the argmax of the logits after bilinear upsampling to H×W (align_corners=False). One exit's
    upsampled logits exist at a time. `exits` restricts the exits; the final one is always there.
    """
    network.eval()
    points = {
        exit_id: network.point(exit_id)
        for exit_id in (network.exits if exits is None else exits)
        if exit_id != FINAL
    }
    for images, labels, indices in batches:
        with torch.inference_mode(), _exact_convolutions():
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            maps = network.features(images)
            logits = network.backbone.head(maps[-1])
            final = _classes(logits, labels)
            predictions = {}
            for exit_id, point in points.items():
                exit_logits = network.exits[exit_id](maps[point - 1])
                predictions[exit_id] = _statistics(
                    exit_logits, labels, final, specs, exit_id in confidence_maps
                )
            predictions[FINAL] = _statistics(logits, labels, final, specs, FINAL in confidence_maps)
        yield indices.numpy(), predictions


def label_counts(label_HW: NDArray[np.uint8], num_classes: int) -> NDArray[np.int32]:
    """Pixels of each class, (C,), void left out."""
    return np.bincount(label_HW.ravel(), minlength=VOID + 1)[:num_classes].astype(np.int32)


def _exact_convolutions() -> AbstractContextManager[None]:
    # The 10-bit mantissa of TF32, a GPU's default, would move pixels across the thresholds of
    # signals, and bundles compute in float32.
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


def _classes(logits_BChw: Tensor, label_BHW: Tensor) -> Tensor:
    size = (label_BHW.shape[1], label_BHW.shape[2])
    return F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False).argmax(1)


def _statistics(
    logits_BChw: Tensor,
    label_BHW: Tensor,
    final_BHW: Tensor,
    specs: Sequence[SignalSpec],
    with_confidence: bool,
) -> ExitPrediction:
    num_classes = logits_BChw.shape[1]
    classes = _classes(logits_BChw, label_BHW)
    void = label_BHW == VOID
    hit = (classes == label_BHW) & ~void
    confidence = None
    if with_confidence:
        scaled = (top1_confidence(logits_BChw) * 255).round().to(torch.uint8)
        confidence = scaled.cpu().numpy()
    return ExitPrediction(
        intersection=_counts(classes, hit, num_classes),
        predicted=_counts(classes, ~void, num_classes),
        agreement=(classes == final_BHW).sum((1, 2)).to(torch.int32).cpu().numpy(),
        signals=signals(logits_BChw, specs).cpu().numpy(),
        label_map=logits_BChw.argmax(1).to(torch.uint8).cpu().numpy(),
        confidence_map=confidence,
    )


def _counts(classes_BHW: Tensor, where_BHW: Tensor, num_classes: int) -> NDArray[np.int32]:
    images = classes_BHW.shape[0]
    offset = torch.arange(images, device=classes_BHW.device).view(-1, 1, 1) * num_classes
    flat = (classes_BHW + offset)[where_BHW]
    counts = torch.bincount(flat, minlength=images * num_classes)
    return counts.view(images, num_classes).to(torch.int32).cpu().numpy()
