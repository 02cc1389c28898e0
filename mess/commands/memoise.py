"""Memoising every exit's predictions on a split."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.cache.compression import compress
from mess.cache.predictions.parts import PartRows
from mess.cache.predictions.store import PredictionStore, Snapshot
from mess.cache.predictions.writer import CacheWriter, Gap, Identity
from mess.commands.check_data import require_labels, say_what_is_missing
from mess.common.metrics import MASKS, label_counts
from mess.common.progress import Reporter
from mess.compute.device import local_device, pick_device
from mess.compute.processes import ALONE, Processes
from mess.config import Config, DataConfig, MemoiseConfig
from mess.data import SPLITS, SegmentationData, Unlabelled
from mess.data.base import fingerprint_of
from mess.data.loader import evaluation_loader
from mess.errors import CacheError, ConfigError, DataError, MessError
from mess.exits import FINAL
from mess.export.programs import require_exportable
from mess.export.segments import native_shapes
from mess.networks.network import OverprovisionedNetwork
from mess.prediction.predict import predict
from mess.prediction.statistics import ExitPrediction
from mess.runs.data_sets import require_trained_classes
from mess.runs.fingerprints import exit_fingerprints
from mess.runs.groups import groups_of
from mess.runs.near_identical import in_other_groups, thumbnails_of
from mess.runs.network import trained_network
from mess.runs.results import CALIBRATION
from mess.runs.run import Run
from mess.runs.sources import ImageSource
from mess.sentences.data import left_out_lines
from mess.sentences.near_identical import near_identical_lines
from mess.signals.registry import configured_signals
from mess.signals.signal import Signal

_PART_IMAGES = 32

_PART_SECONDS = 60.0
"""A part is written after so many images or seconds: a kill loses no more."""

PredictedImages = tuple[list[str], dict[str, ExitPrediction]]
"""Ids of the images, and the predictions of every exit."""


def memoise_split(
    place: Run,
    split: str | None,
    name: str | None,
    root: Path | None,
    device_name: str,
    reporter: Reporter,
    processes: Processes = ALONE,
    images: Path | None = None,
) -> PredictionStore:
    """Bring the cache `name` to the predictions on `split`, of the data set at `root` if given.

    In the place of a split it may be of the pictures in the folder `images`, which have no masks:
    they are counted against the final exit. What an earlier run stored and is still true is kept.
    Processes divide the images.
    """
    name, source = _source(place, name, _asked(split, root, images))
    config, data = place.config, source.open(place)
    require_trained_classes(place, data)
    writer = CacheWriter(PredictionStore(place.cache(name)), _identity(place, data, source))
    if isinstance(data, Unlabelled):
        data.require_distinct(writer.identity.images)
        for line in left_out_lines(data.where, data.others):
            reporter.message(line)
    # Before the lock: a finished cache needs none, nor the network. The first process looks for
    # all, so that all agree.
    if not processes.most(processes.is_first and not writer.is_finished()):
        return writer.store
    with place.locked() if processes.is_first else nullcontext():
        gaps = _begin(writer, data, reporter, processes)
        require_exportable(
            configured_signals(config.memoise), config.data.size, data.classes.num_classes
        )
        network = trained_network(place, local_device(pick_device(device_name)))
        _fill(writer, network, data, config, gaps, reporter, processes)
        processes.wait()
        if processes.is_first:
            # All parts are there now; nobody leaves before the cache is complete.
            writer.finish(native_shapes(network, config.data.size))
        processes.wait()
    exits = len(writer.identity.exits)
    against = "" if writer.identity.labels == MASKS else ", against the final exit"
    reporter.message(
        f"Memoised {len(data)} images x {exits} exits{against}, in {writer.store.directory}."
    )
    if processes.is_first:
        cache = Snapshot(writer.store, None)
        _say_what_is_missing(cache, data, reporter)
        _warn_of_near_identical(cache, config.data, reporter)
    return writer.store


def _say_what_is_missing(cache: Snapshot, data: SegmentationData, reporter: Reporter) -> None:
    # Of pictures without masks it was said before.
    if not isinstance(data, Unlabelled):
        labelled = np.sum([row["label"] for row in cache.images], axis=0)
        say_what_is_missing(data, labelled, reporter)


def _warn_of_near_identical(cache: Snapshot, data: DataConfig, reporter: Reporter) -> None:
    """Say where `data.groups` keeps apart what belongs together: a certificate would be wrong."""
    try:
        groups = groups_of(data, list(cache.image_fingerprints))
    except MessError as error:
        # No prediction needs groups, and what does will refuse them.
        reporter.message(f"Nearly identical images were not looked for: {error}")
        return
    told = {"near_identical": in_other_groups(thumbnails_of(cache, data), groups)}
    for line in near_identical_lines(told, groups.images):
        reporter.message(line)


def _begin(
    writer: CacheWriter, data: SegmentationData, reporter: Reporter, processes: Processes
) -> list[Gap]:
    """What the cache lacks, the same in every process."""
    if processes.is_first:
        writer.begin(lambda indices: _image_rows(data, indices, reporter))
    processes.wait()
    gaps = writer.missing()
    # None may write before all have seen what is missing.
    processes.wait()
    return gaps


def _fill(
    writer: CacheWriter,
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    gaps: Sequence[Gap],
    reporter: Reporter,
    processes: Processes,
) -> None:
    """Predict and write what this process has of the gaps."""
    missing = sum(len(gap.images) for gap in gaps)
    # An image may be in several gaps, and then counts in each.
    total = max(len(data), missing)
    name = writer.store.directory.name
    with reporter.task(f"memoising {name}", total, total - missing) as progress:
        shares = [_share(gap, processes) for gap in gaps]
        for share in filter(lambda share: share.images, shares):
            for rows in _predicted_parts(network, data, config, share):
                # Between predicting and writing: where the fingerprint is still that of the
                # identity, the image that was read is the one it was taken of.
                _require_unchanged(data, writer.identity, rows.images)
                writer.write(share, rows)
                # The first process alone is shown, and its pace is taken for that of all.
                progress.advance(len(rows.images) * processes.count)


def _identity(place: Run, data: SegmentationData, source: ImageSource) -> Identity:
    config, known = place.config, place.expected_identity
    unknown = sorted(set(config.memoise.confidence_maps) - set(known["exits"]))
    if unknown:
        raise ConfigError(
            f"memoise.confidence_maps names {unknown[0]!r}, which is no trained exit of this run; "
            "`mess exits` lists them."
        )
    images = data.image_fingerprints()
    return Identity(
        classes=data.classes.names,
        exits=exit_fingerprints(place.weights, known["exits"], config),
        images=images,
        signals=tuple(signal.to_json() for signal in configured_signals(config.memoise)),
        weights=known["weights"],
        pipeline=known["pipeline"],
        data=fingerprint_of(images),
        source=source.to_manifest(config.data.kind),
        labels=FINAL if isinstance(data, Unlabelled) else MASKS,
        label_maps=config.memoise.label_maps,
        confidence_maps=config.memoise.confidence_maps,
    )


def _asked(split: str | None, root: Path | None, images: Path | None) -> ImageSource | None:
    """The source that is asked for; None where nothing says which."""
    if images is not None:
        return ImageSource(None, images.resolve())
    if split is None and root is None:
        return None
    return ImageSource(split or CALIBRATION, root and root.resolve())


def _source(place: Run, name: str | None, asked: ImageSource | None) -> tuple[str, ImageSource]:
    """Name and source of a cache; what is not asked for is as it was when the cache was made."""
    if name is None and asked is not None:
        name = asked.root.name if asked.split is None and asked.root else asked.split
    name = name or CALIBRATION
    store = PredictionStore(place.cache(name))
    if name in SPLITS:
        own = ImageSource(name, None)
        if asked not in (None, own):
            raise MessError(
                f"the cache {name!r} is that of the run's own {name} split. Give other predictions "
                "another name with --name."
            )
        return name, own
    try:
        stored = ImageSource.of(store.manifest()["source"])
    except CacheError as error:
        if asked is not None:
            return name, asked
        raise MessError(
            f"nothing tells what the cache {name!r} is of: {error} Say it with --split, --root or "
            "--images."
        ) from error
    if asked not in (None, stored):
        raise MessError(
            f"the cache {name!r} holds {stored}. Choose another name with --name, or delete "
            f"{store.directory}."
        )
    return name, stored


def _image_rows(
    data: SegmentationData, indices: Sequence[int], reporter: Reporter
) -> Iterator[dict[str, Any]]:
    if not indices:
        return
    height, width = data.size
    # Pictures without masks are read, too: one that cannot be is found before the network runs.
    what = "images" if isinstance(data, Unlabelled) else "labels"
    labelled = 0
    with reporter.task(f"reading {what}", len(indices)) as progress:
        for index in indices:
            _, mask_HW = data.sized(index)
            label = label_counts(mask_HW, data.classes.num_classes)
            labelled += int(label.sum())
            yield {
                "image_id": data.ids[index],
                "height": height,
                "width": width,
                "label": label,
                "thumbnail": data.thumbnail(index).tobytes(),
            }
            progress.advance()
    # Of some that are new there may be others.
    if len(indices) == len(data) and not isinstance(data, Unlabelled):
        require_labels(data, labelled)


def _require_unchanged(data: SegmentationData, identity: Identity, images: Sequence[str]) -> None:
    """Raise DataError for an image that is no longer what its fingerprint was taken of."""
    for image_id, fingerprint in data.image_fingerprints(images).items():
        if fingerprint != identity.images[image_id]:
            raise DataError(
                f"{data.where}: image {image_id!r} changed while it was memoised. Run the same "
                "command again; the parts before it are kept."
            )


def _share(gap: Gap, processes: Processes) -> Gap:
    """The gap with the images of this process, which follow one another."""
    # Whole numbers: shares differ by one image at most, and together are all of them.
    bounds = [len(gap.images) * n // processes.count for n in range(processes.count + 1)]
    start, end = bounds[processes.rank], bounds[processes.rank + 1]
    return replace(gap, images=gap.images[start:end])


def _predicted_parts(
    network: OverprovisionedNetwork, data: SegmentationData, config: Config, gap: Gap
) -> Iterator[PartRows]:
    """The rows that fill a gap, in parts."""
    settings = config.memoise
    wanted = [s for s in configured_signals(settings) if s.name in gap.signal_names]
    subset = data.select(gap.images, data.where)
    loader = evaluation_loader(subset, config.data, batch_size=settings.batch_size)
    batches: list[PredictedImages] = []
    begun = time.monotonic()
    for indices, predictions in predict(
        network,
        loader,
        wanted,
        device=next(network.parameters()).device,
        exits=gap.exits,
        confidence_maps=settings.confidence_maps,
        batch_size=settings.batch_size,
        against_final=isinstance(data, Unlabelled),
    ):
        ids = [subset.ids[index] for index in indices]
        _require_finite(ids, predictions, wanted)
        batches.append((ids, predictions))
        images = sum(len(ids) for ids, _ in batches)
        if images >= _PART_IMAGES or time.monotonic() - begun >= _PART_SECONDS:
            yield part_rows(batches, gap, settings)
            batches, begun = [], time.monotonic()
    if batches:
        yield part_rows(batches, gap, settings)


def _require_finite(
    ids: Sequence[str], predictions: Mapping[str, ExitPrediction], signals: Sequence[Signal]
) -> None:
    for exit_id, prediction in predictions.items():
        found = np.argwhere(~np.isfinite(prediction.signals))
        if len(found):
            image, column = found[0]
            cause = "its class must give finite numbers"
            if not signals[column].is_own:
                cause = "so its logits are not finite, and training went wrong"
            raise MessError(
                f"the signal {signals[column].name!r} of exit {exit_id!r} on image {ids[image]!r} "
                f"is {prediction.signals[image, column]}; {cause}."
            )


def part_rows(batches: Sequence[PredictedImages], gap: Gap, settings: MemoiseConfig) -> PartRows:
    """What was predicted on some batches as the rows of a part."""

    def column(name: str) -> NDArray[Any]:
        exits = [
            np.concatenate([getattr(predictions[exit_id], name) for _, predictions in batches])
            for exit_id in gap.exits
        ]
        return np.stack(exits, axis=1)

    def maps(name: str, wanted: Container[str]) -> NDArray[np.object_]:
        found = [
            [
                None if values is None or exit_id not in wanted else compress(values[i])
                for exit_id, values in ((e, getattr(predictions[e], name)) for e in gap.exits)
            ]
            for ids, predictions in batches
            for i in range(len(ids))
        ]
        # Filled afterwards, for numpy left to itself makes bytes strings without their last zeros.
        out = np.empty((len(found), len(gap.exits)), dtype=np.object_)
        out[:] = found
        return out

    return PartRows(
        images=tuple(image_id for ids, _ in batches for image_id in ids),
        exits=gap.exits,
        signal_names=gap.signal_names,
        intersection=column("intersection"),
        predicted=column("predicted"),
        agreement=column("agreement"),
        lost=column("lost"),
        signals=column("signals"),
        label_map=maps("label_map", gap.exits if settings.label_maps else ()),
        confidence_map=maps("confidence_map", settings.confidence_maps),
    )
