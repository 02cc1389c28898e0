"""The prediction pass: one run of the network, the sufficient statistics of every exit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mess.exits import FINAL
from mess.networks.network import OverprovisionedNetwork
from mess.prediction.compiled import CompiledStatistics
from mess.prediction.in_torch import TensorStatistics
from mess.prediction.statistics import BatchStatistics, ExitPrediction
from mess.signals.signal import Signal


def predict(
    network: OverprovisionedNetwork,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    signals: Sequence[Signal],
    *,
    device: torch.device,
    exits: Sequence[str] | None = None,
    confidence_maps: Sequence[str] = (),
    batch_size: int | None = None,
    against_final: bool = False,
) -> Iterator[tuple[NDArray[np.int64], dict[str, ExitPrediction]]]:
    """Image indices and the predictions of every exit, batch by batch.

    `batches` give images (B, 3, H, W), labels (B, H, W) and indices (B,). The class of a pixel is
    the argmax of the logits after bilinear upsampling to H×W (align_corners=False). The backbone
    and every exit run once; no more than one exit's logits exist at H×W, on the CPU none's. `exits`
    restricts the exits; the final one is always there. With `against_final` its classes are what is
    counted against, in the place of the labels that are not void. Smaller batches are filled up to
    `batch_size`, so that a prediction does not depend on what is computed with it: convolutions
    round otherwise for another number of images.
    """
    network.eval()
    early = [exit_id for exit_id in (network.exits if exits is None else exits) if exit_id != FINAL]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for images, labels, indices in batches:
            count = len(images)
            images, labels = _filled(images, batch_size), _filled(labels, batch_size)
            # Ended before the yield: the code that takes the predictions would run under them, too.
            with torch.inference_mode(), _exact_convolutions():
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                features = network.features(images)
                logits = network.logits(FINAL, features)
                statistics = _statistics(
                    labels.to(device, non_blocking=True), logits, signals, pool, against_final
                )
                for exit_id in early:
                    statistics.add(
                        exit_id,
                        network.logits(exit_id, features),
                        confidence_map=exit_id in confidence_maps,
                    )
                statistics.add(FINAL, logits, confidence_map=FINAL in confidence_maps)
                predictions = statistics.collect()
            yield indices.numpy(), {name: _first(p, count) for name, p in predictions.items()}


def _filled(batch: Tensor, size: int | None) -> Tensor:
    """A batch with its last item repeated up to `size`."""
    missing = 0 if size is None else max(0, size - len(batch))
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch


def _first(prediction: ExitPrediction, count: int) -> ExitPrediction:
    """Of the first images of a batch."""
    confidence = prediction.confidence_map
    return ExitPrediction(
        intersection=prediction.intersection[:count],
        predicted=prediction.predicted[:count],
        agreement=prediction.agreement[:count],
        lost=prediction.lost[:count],
        signals=prediction.signals[:count],
        label_map=prediction.label_map[:count],
        confidence_map=None if confidence is None else confidence[:count],
    )


def _statistics(
    labels: Tensor,
    logits: Tensor,
    signals: Sequence[Signal],
    pool: Executor,
    against_final: bool,
) -> BatchStatistics:
    if logits.device.type == "cpu":
        threads = torch.get_num_threads()
        return CompiledStatistics(labels, logits, signals, pool, threads, against_final)
    return TensorStatistics(labels, logits, signals, against_final)


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
