"""Memoising every exit's predictions on a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mess.assembly import exit_rows, expected_identity
from mess.cache.store import Identity, PredictionStore
from mess.config import Config
from mess.data import SegmentationData, evaluation_loader, open_split
from mess.errors import ConfigError
from mess.network import OverprovisionedNetwork
from mess.prediction import label_counts, predict
from mess.programs import native_shapes
from mess.progress import Reporter
from mess.run import Run
from mess.signal_spec import configured_signals
from mess.steps.networks import pick_device, trained_network

_PART_IMAGES = 32


def memoise_split(place: Run, split: str, device_name: str, reporter: Reporter) -> PredictionStore:
    """Fill the cache of `split`; parts an earlier run finished are kept."""
    config = place.config()
    rows = exit_rows(place)
    known = expected_identity(place, config, rows)
    data = open_split(config.data, split, config.seed)
    identity = Identity(
        classes=data.classes.names,
        images=len(data),
        exits=tuple(known["exits"]),
        signals=tuple(known["signals"]),
        weights=known["weights"],
        data=data.fingerprint(),
        part_images=_PART_IMAGES,
        label_maps=config.memoise.label_maps,
        confidence_maps=config.memoise.confidence_maps,
    )
    unknown = sorted(set(config.memoise.confidence_maps) - set(known["exits"]))
    if unknown:
        raise ConfigError(
            f"memoise.confidence_maps names {unknown[0]!r}, which is no trained exit of this run; "
            "`mess exits` lists them."
        )
    height, width = config.data.size
    images = (
        {
            "image_id": image_id,
            "height": height,
            "width": width,
            "label": label_counts(data.sized(index)[1], data.classes.num_classes),
        }
        for index, image_id in enumerate(data.ids)
    )
    store = PredictionStore(place.cache(split))
    with place.locked():
        lacking = store.prepare(identity, images)
        if not lacking and store.manifest()["complete"]:
            return store
        network = trained_network(place, config, pick_device(device_name))
        _write_parts(network, data, config, store, lacking, split, reporter)
        store.finish(native_shapes(network, config.data.size))
    reporter.message(f"Memoised {len(data)} images x {len(rows)} exits in {store.directory}.")
    return store


def _write_parts(
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    store: PredictionStore,
    parts: Sequence[int],
    split: str,
    reporter: Reporter,
) -> None:
    device = next(network.parameters()).device
    settings = config.memoise
    specs = configured_signals(settings)
    chosen = {
        part: range(part * _PART_IMAGES, min((part + 1) * _PART_IMAGES, len(data)))
        for part in parts
    }
    done = len(data) - sum(len(images) for images in chosen.values())
    with reporter.task(f"memoising {split}", len(data), done) as task:
        for part, images in chosen.items():
            subset = data.select(images, f"part {part} of {data.where}")
            loader = evaluation_loader(subset, config.data, batch_size=settings.batch_size)
            rows: list[dict[str, Any]] = []
            for indices, predictions in predict(
                network, loader, specs, device=device, confidence_maps=settings.confidence_maps
            ):
                ids = [subset.ids[index] for index in indices]
                for exit_id, prediction in predictions.items():
                    rows += prediction.rows(exit_id, ids, label_maps=settings.label_maps)
                task.advance(len(ids))
            store.write_part(part, rows)
