"""The prediction pass against plain counting of pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mess.cache.compression import compress, decompress
from mess.common.metrics import VOID, label_counts
from mess.common.resizing import upsampled
from mess.config import Config
from mess.exits import FINAL
from mess.networks.candidates import candidates
from mess.networks.network import OverprovisionedNetwork, build_network
from mess.prediction.predict import ExitPrediction, predict
from mess.signals.builtin import ConfidentShare
from mess.signals.maps import PixelMaps
from mess.signals.measure import measure
from tests.seeds import seeded

CLASSES = 5
SIZE = (32, 48)
CPU = torch.device("cpu")
SPECS = [ConfidentShare("top1", 0.3, False), ConfidentShare("top1", 0.3, True)]

Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def network(tiny: Config) -> OverprovisionedNetwork:
    network = build_network(tiny, candidates(tiny, CLASSES), CLASSES)
    # Larger last layers: untrained exits would all but agree on one class.
    with torch.no_grad():
        for exit_id in [*network.exits, FINAL]:
            list(network.exit_module(exit_id).parameters())[-2].mul_(40)
    return network


def batches() -> Iterator[Batch]:
    """Two batches, the last one smaller, with void pixels and one image that is all void."""
    generator = torch.Generator().manual_seed(seeded(3))
    images = torch.randn(5, 3, *SIZE, generator=generator)
    images[:, :, :, 20:] += 2
    labels = torch.randint(0, CLASSES, (5, *SIZE), generator=generator)
    labels[torch.rand(5, *SIZE, generator=generator) < 0.2] = 255
    labels[4] = 255
    yield images[:3], labels[:3], torch.tensor([0, 1, 2])
    yield images[3:], labels[3:], torch.tensor([3, 4])


def native_logits(network: OverprovisionedNetwork, exit_id: str, images: Tensor) -> Tensor:
    """Block after block up to the exit's point, then the exit."""
    network.eval()
    with torch.inference_mode():
        features = images.to(memory_format=torch.channels_last)
        for block in network.span(0, network.point(exit_id)).blocks:
            features = block(features)
        return network.exit_module(exit_id)(features)


def classes_at_input(logits: Tensor) -> NDArray[np.int64]:
    return upsampled(logits.numpy(), SIZE).argmax(1)


def collected(
    network: OverprovisionedNetwork, **options: object
) -> list[tuple[Batch, dict[str, ExitPrediction]]]:
    results = predict(network, batches(), SPECS, device=CPU, **options)  # pyright: ignore[reportArgumentType]
    return [(batch, found) for batch, (_, found) in zip(batches(), results, strict=True)]


def test_counts_are_those_of_plain_loops_over_pixels(network: OverprovisionedNetwork) -> None:
    seen = set()
    for (images, labels, _), predictions in collected(network):
        for exit_id, found in predictions.items():
            classes = classes_at_input(native_logits(network, exit_id, images))
            for i, truth in enumerate(labels.numpy()):
                pairs = [
                    (p, t) for p, t in zip(classes[i].flat, truth.flat, strict=True) if t != 255
                ]
                for c in range(CLASSES):
                    assert found.intersection[i, c] == sum(p == t == c for p, t in pairs)
                    assert found.predicted[i, c] == sum(p == c for p, _ in pairs)
                seen |= {p for p, _ in pairs}
            assert found.intersection.dtype == found.predicted.dtype == np.int32
    assert len(seen) > 2


def test_void_pixels_are_never_counted(network: OverprovisionedNetwork) -> None:
    all_void = 0
    for (_, labels, _), predictions in collected(network):
        labelled = (labels != 255).sum((1, 2)).numpy()
        all_void += int((labelled == 0).sum())
        for found in predictions.values():
            np.testing.assert_array_equal(found.predicted.sum(1), labelled)
    assert all_void == 1


def test_agreement_counts_pixels_of_the_final_exits_class_void_or_not(
    network: OverprovisionedNetwork,
) -> None:
    partly = False
    for (images, _, _), predictions in collected(network):
        final = classes_at_input(native_logits(network, FINAL, images))
        for exit_id, found in predictions.items():
            ours = classes_at_input(native_logits(network, exit_id, images))
            np.testing.assert_array_equal(found.agreement, (ours == final).sum((1, 2)))
            partly |= bool((found.agreement < SIZE[0] * SIZE[1]).any())
        assert (predictions[FINAL].agreement == SIZE[0] * SIZE[1]).all()
    assert partly


def test_lost_are_labelled_pixels_that_the_final_exit_alone_gets_right(
    network: OverprovisionedNetwork,
) -> None:
    some = False
    for (images, labels, _), predictions in collected(network):
        truth = labels.numpy()
        final = classes_at_input(native_logits(network, FINAL, images))
        for exit_id, found in predictions.items():
            ours = classes_at_input(native_logits(network, exit_id, images))
            expected = ((final == truth) & (ours != truth) & (truth != 255)).sum((1, 2))
            np.testing.assert_array_equal(found.lost, expected)
            some |= bool(found.lost.any())
        assert not predictions[FINAL].lost.any()
    assert some


def test_signals_and_label_maps_are_those_at_native_resolution(
    network: OverprovisionedNetwork,
) -> None:
    for (images, _, _), predictions in collected(network):
        for exit_id, found in predictions.items():
            logits = native_logits(network, exit_id, images)
            np.testing.assert_array_equal(found.label_map, logits.argmax(1).numpy())
            np.testing.assert_array_equal(
                found.signals, measure(PixelMaps(logits), SPECS, SIZE).numpy()
            )
            assert found.label_map.dtype == np.uint8
            assert found.confidence_map is None


def test_confidence_maps_are_kept_in_255ths_where_asked_for(
    network: OverprovisionedNetwork,
) -> None:
    chosen = [next(iter(network.exits)), FINAL]
    for (images, _, _), predictions in collected(network, confidence_maps=chosen):
        for exit_id, found in predictions.items():
            if exit_id not in chosen:
                assert found.confidence_map is None
                continue
            top1 = native_logits(network, exit_id, images).softmax(1).amax(1).numpy()
            assert found.confidence_map is not None
            np.testing.assert_allclose(found.confidence_map, 255 * top1, atol=0.501)


def test_every_exit_and_image_is_predicted_once(network: OverprovisionedNetwork) -> None:
    indices = []
    for found, predictions in predict(network, batches(), SPECS, device=CPU):
        indices += found.tolist()
        assert list(predictions) == [*network.exits, FINAL]
    assert indices == [0, 1, 2, 3, 4]


def test_chosen_exits_come_with_the_final_one(network: OverprovisionedNetwork) -> None:
    chosen = list(network.exits)[1]
    for _, predictions in collected(network, exits=[chosen]):
        assert list(predictions) == [chosen, FINAL]


def test_predicting_leaves_the_weights_alone(network: OverprovisionedNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    collected(network)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_labels_are_counted_by_class_without_void() -> None:
    label = np.array([[0, 2, 2], [255, 4, 255]], np.uint8)
    assert label_counts(label, CLASSES).tolist() == [1, 0, 2, 0, 1]
    assert label_counts(np.full((2, 2), 255, np.uint8), 3).tolist() == [0, 0, 0]
    assert label_counts(label, CLASSES).dtype == np.int32


def test_maps_survive_compression_whatever_their_layout() -> None:
    rng = np.random.default_rng(seeded(0))
    for label_map in (
        rng.integers(0, 256, (7, 9)).astype(np.uint8),
        rng.integers(0, 256, (9, 7)).astype(np.uint8).T,
        rng.integers(0, 256, (14, 9)).astype(np.uint8)[::2],
    ):
        np.testing.assert_array_equal(decompress(compress(label_map), (7, 9)), label_map)


def test_against_the_final_exit_its_classes_are_in_the_place_of_labels(
    network: OverprovisionedNetwork,
) -> None:
    """Every number is what it is with those classes as labels; the final exit is never wrong.

    Void stays void.
    """
    labels = [
        label.where(
            label == VOID,
            torch.from_numpy(classes_at_input(native_logits(network, FINAL, images))).to(label),
        )
        for images, label, _ in batches()
    ]
    labelled = [(images, label, i) for (images, _, i), label in zip(batches(), labels, strict=True)]
    expected = list(predict(network, labelled, SPECS, device=CPU))
    found = list(predict(network, batches(), SPECS, device=CPU, against_final=True))
    for (ours_ids, ours), (ids, theirs) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours_ids, ids)
        assert list(ours) == list(theirs)
        for exit_id, prediction in theirs.items():
            for name, values in vars(prediction).items():
                if values is not None:
                    np.testing.assert_array_equal(getattr(ours[exit_id], name), values)
        np.testing.assert_array_equal(ours[FINAL].intersection, ours[FINAL].predicted)
        assert (ours[FINAL].predicted.sum(1) < SIZE[0] * SIZE[1]).all()
        assert any((row.intersection != row.predicted).any() for row in ours.values())
