"""One plain function per command: the only place where network, cache and search meet.

Functions that need torch import it when they run: `mess search` and `mess --help` start without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mess.assembly import (
    CALIBRATION,
    DEFAULT_PROFILE,
    candidate_rows,
    exit_rows,
    expected_identity,
    load_costs,
    load_tables,
)
from mess.cache.parquet import write_rows
from mess.cache.schema import EXITS, FRONT, IMAGES, LATENCY
from mess.cache.store import Identity, PredictionStore
from mess.config import Config, load_config
from mess.errors import BundleError, DataError, MessError
from mess.exits import FINAL
from mess.files import sha256, write_json
from mess.progress import Reporter, Silent
from mess.run import Run, begin_run, find_run, new_id
from mess.signal_spec import SignalSpec, configured_signals

if TYPE_CHECKING:
    import torch

    from mess.data import ClassTable, SegmentationData
    from mess.network import OverprovisionedNetwork

_SILENT = Silent()
_PART_IMAGES = 32
BASELINE = "baseline"


def train_overprovisioned(
    config: str | Path | None = None,
    *,
    run: Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> Run:
    """Train both stages, memoise the calibration split and measure latency; resumes where it was.

    `config` is a shipped name or a TOML file ("quickstart" by default; the run's own configuration
    where `run` has one). Returns the run.
    """
    place = _begin(config, run, overrides)
    reporter.message(f"Run: {place.path}")
    settings = place.config()
    if not place.weights.exists() or not place.exits.exists():
        _train(place, settings, device, reporter)
    memoise(run=place.path, device=device, reporter=reporter)
    if not _profile_is_current(place, DEFAULT_PROFILE):
        profile(run=place.path, reporter=reporter)
    return place


def exits(config: str | Path | None = None, *, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The candidate exits of a configuration as rows of exits.parquet, without training."""
    from mess.candidates import candidates

    settings = load_config(config or "quickstart", overrides)
    return candidate_rows(candidates(settings, _num_classes(settings)))


def memoise(
    *,
    run: Path | None = None,
    split: str = CALIBRATION,
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> Path:
    """Store every exit's predictions on a split; goes on with the part a killed run left off.

    Returns the cache's directory. A complete cache of these weights and data is left as it is.
    """
    from mess.data import open_split
    from mess.prediction import label_counts

    place = find_run(run)
    config = place.config()
    rows = exit_rows(place)
    data = open_split(config.data, split, config.seed)
    specs = configured_signals(config.memoise)
    known = expected_identity(place, config, rows)
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
    height, width = config.data.size
    store = PredictionStore(place.cache(split))
    images = (
        {
            "image_id": image_id,
            "height": height,
            "width": width,
            "label": label_counts(data.sized(index)[1], data.classes.num_classes).tolist(),
        }
        for index, image_id in enumerate(data.ids)
    )
    lacking = store.prepare(identity, images)
    if not lacking and store.manifest()["complete"]:
        return store.directory
    network = _trained(place, config, _device(device))
    shapes = _memoise_parts(network, data, config, specs, store, lacking, split, reporter)
    store.finish(shapes)
    reporter.message(f"Memoised {len(data)} images x {len(rows)} exits in {store.directory}.")
    return store.directory


def profile(
    *,
    run: Path | None = None,
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime",
    threads: int = 1,
    rounds: int = 30,
    name: str | None = None,
    reporter: Reporter = _SILENT,
) -> Path:
    """Measure every segment and exit on this machine; returns RUN/latency/NAME.parquet."""
    import torch

    from mess import latency

    place = find_run(run)
    config = place.config()
    network = _trained(place, config, torch.device("cpu"))
    timings = latency.profile(
        network,
        config.data.size,
        configured_signals(config.memoise),
        runtime=runtime,
        threads=threads,
        rounds=rounds,
        reporter=reporter,
    )
    facts = latency.machine_facts(runtime, threads) | {
        "weights": sha256(place.weights),
        "size": list(config.data.size),
    }
    path = place.latency(name or f"{runtime}-{threads}thread")
    write_rows(path, [vars(timing) for timing in timings], LATENCY, facts)
    reporter.message(f"Measured {len(timings)} parts, written to {path}.")
    return path


def search(
    run: Path | None = None,
    *,
    setting: str = "input-dependent",
    target: str = "latency",
    max_error: float | None = None,
    min_miou: float | None = None,
    max_latency: float | None = None,
    max_macs: str | float | None = None,
    checkpoints: Sequence[str] = (),
    latency_stat: str = "mean",
    profile: str | None = None,
    max_exits: int = 3,
    thresholds: int = 16,
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """Find the best instance without retraining; returns result.json, `id` and `path` added.

    `max_latency` is in ms, `max_macs` a number or "0.5x" of the baseline's, a checkpoint
    "COST=MIOU" in the unit of the target. Raises InfeasibleError when nothing meets the limits.
    """
    from mess.search.answer import search as run_search
    from mess.search.request import Request

    place = find_run(run)
    tables, manifest = load_tables(place)
    costs = load_costs(place, tables, manifest, profile)
    if "latency" not in costs and (target == "latency" or max_latency is not None):
        raise MessError(
            f"{place.path} has no latency profile. Measure one with `mess profile`, or use "
            "--target macs."
        )
    baseline = costs["macs"].backbone[-1] + costs["macs"].exit[tables.final]
    request = Request(
        setting=setting,
        target=target,
        max_error=max_error,
        min_miou=min_miou,
        max_latency_ms=max_latency,
        max_macs=_amount(max_macs, float(baseline), "--max-macs"),
        latency_stat=latency_stat,
        max_exits=max_exits,
        thresholds=thresholds,
        checkpoints=tuple(_checkpoint(text) for text in checkpoints),
    )
    with reporter.task("searching", 1) as task:
        answer = run_search(tables, costs, request, _progress(task))
    result = answer.to_result() | {
        "cache": {"weights": manifest["weights"], "data": manifest["data"]},
        "profile": (profile or DEFAULT_PROFILE) if "latency" in costs else None,
    }
    search_id = new_id(place.path / "searches", _search_name(request))
    folder = place.search(search_id)
    write_rows(folder / "front.parquet", answer.front_rows(), FRONT)
    write_json(folder / "result.json", result)
    return {"id": search_id, "path": str(folder), **result}


def export(
    run: Path | None = None,
    *,
    search: str | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    output: Path | None = None,
    reporter: Reporter = _SILENT,
) -> Path:
    """Write the bundle of a search's instance (the newest by default); returns its folder.

    The network run to its end is exported once beside it, for comparisons.
    """
    import torch

    place = find_run(run)
    search_id = place.require_search(search)
    result = json.loads((place.search(search_id) / "result.json").read_text(encoding="utf-8"))
    if result["cache"]["weights"] != sha256(place.weights):
        raise MessError(
            f"search {search_id!r} ran on other weights than {place.weights} holds now. "
            "Run `mess search` again."
        )
    config = place.config()
    network = _trained(place, config, torch.device("cpu"))
    suffix = "" if format == "onnx" else f"-{format}"
    _export_baseline(place, config, network, result, format, reporter)
    directory = output or place.bundle(search_id + suffix)
    return _export(place, config, network, result, search_id, directory, format, reporter)


def evaluate(
    bundle: Path | None = None,
    *,
    run: Path | None = None,
    split: str = "test",
    threads: int = 1,
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """Run a bundle for real on a split, in turns with the network run to its end.

    `bundle` is the newest of the run by default. On the calibration split the result says how far
    the bundle agrees with what the search predicted.
    """
    from mess.data import open_split
    from mess.evaluation import run_bundles
    from mess.images import normalise
    from mess.runtime import load_bundle

    place = find_run(run if run is not None else _run_of(bundle))
    path = bundle or _newest_bundle(place)
    loaded = load_bundle(path, threads=threads)
    baseline = load_bundle(_baseline_bundle(place, loaded.manifest["format"]), threads=threads)
    config = place.config()
    if loaded.size != tuple(config.data.size):
        raise BundleError(
            f"bundle {path} takes images of {loaded.size}, run {place.path} has "
            f"{tuple(config.data.size)}. Name the run it was exported from with --run."
        )
    data = open_split(config.data, split, config.seed)
    sized = (data.sized(index) for index in range(len(data)))
    with reporter.task(f"evaluating on {split}", len(data)) as task:
        ours, reference = run_bundles(
            [loaded, baseline], ((normalise(image), label) for image, label in sized), task
        )
    report = {
        "bundle": str(path),
        "split": split,
        "images": len(data),
        "miou": ours.miou,
        "error": reference.miou - ours.miou,
        "macs": ours.macs,
        "latency_ms": ours.latency_ms,
        "exit_rates": ours.exit_rates,
        "baseline": {
            "miou": reference.miou,
            "macs": reference.macs,
            "latency_ms": reference.latency_ms,
        },
    }
    if split == CALIBRATION:
        report["agreement"] = _agreement(place, loaded.manifest, ours)
    return report


def predict(bundle: Path, images: Sequence[Path], *, output: Path, threads: int = 1) -> list[dict[str, Any]]:
    """Write the label map of every image to `output` as a palette PNG of the image's own size.

    Returns, per image, the file, the exit taken and its signal.
    """
    from PIL import Image

    from mess.files import atomic_path
    from mess.images import read_image, resize_mask
    from mess.runtime import load_bundle

    loaded = load_bundle(bundle, threads=threads)
    palette = [value for color in loaded.manifest["palette"] for value in color]
    rows = []
    for image in images:
        pixels = read_image(image)
        answer = loaded(pixels)
        picture = Image.fromarray(resize_mask(answer.label_map, pixels.shape[:2]), mode="P")
        picture.putpalette(palette)
        path = output / f"{image.stem}.png"
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
        rows.append(
            {
                "image": str(image),
                "label_map": str(path),
                "exit_id": answer.exit_id,
                "signal": answer.signal,
            }
        )
    return rows


def _begin(config: str | Path | None, run: Path | None, overrides: Sequence[str]) -> Run:
    if config is None and run is not None and (run / "config.toml").is_file():
        resolved = load_config(run / "config.toml", overrides)
    else:
        resolved = load_config(config or "quickstart", overrides)
    if resolved.data.root is not None:
        # A resumed run may be started from another folder.
        root = resolved.data.root.resolve()
        resolved = resolved.model_copy(
            update={"data": resolved.data.model_copy(update={"root": root})}
        )
    return begin_run(run, resolved, Path(config or "quickstart").stem)


def _train(place: Run, config: Config, device: str, reporter: Reporter) -> None:
    import torch

    from mess.candidates import TRAINED, candidates
    from mess.data import open_split, training_loader
    from mess.metrics_log import MetricsLog
    from mess.network import build_network, save_weights
    from mess.seeds import derive
    from mess.stages import mess_stages
    from mess.training import train

    where = _device(device)
    data = open_split(config.data, "train", config.seed)
    classes = data.classes.num_classes
    rows = candidates(config, classes)
    network = build_network(config, rows, classes).to(where)
    stages = mess_stages(network, config, rows, classes, where)
    log = MetricsLog(place.metrics)

    def batches(stage: str, iterations: int, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = training_loader(
            data,
            config.data,
            seed=derive(config.seed, stage),
            iterations=iterations,
            batch_size=config.training.batch_size,
            start=start,
        )
        for images, labels, _ in loader:
            yield images, labels

    def after_stage(stage: str) -> None:
        if config.data.holdout:
            _log_holdout(network, config, stage, log, where, reporter)

    train(
        network,
        stages,
        config,
        batches,
        checkpoint=place.checkpoint,
        log=log,
        reporter=reporter,
        device=where,
        after_stage=after_stage,
    )
    trained = [replace(row, status=TRAINED) if row.status == "kept" else row for row in rows]
    write_rows(place.exits, candidate_rows(trained), EXITS)
    save_weights(network, place.weights)
    place.checkpoint.unlink(missing_ok=True)


def _log_holdout(
    network: OverprovisionedNetwork,
    config: Config,
    stage: str,
    log: Any,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """mIoU of the exits a stage trained, on the images held out of train."""
    from mess.data import evaluation_loader, open_split
    from mess.metrics import mean_iou
    from mess.prediction import label_counts, predict

    data = open_split(config.data, "holdout", config.seed)
    label = sum(label_counts(data.sized(i)[1], data.classes.num_classes) for i in range(len(data)))
    sums: dict[str, np.ndarray] = {}
    loader = evaluation_loader(data, config.data, batch_size=config.memoise.batch_size)
    exits = [FINAL] if stage == "stage1" else [*network.exits, FINAL]
    for _, predictions in predict(network, loader, [], device=device, exits=exits):
        for exit_id, prediction in predictions.items():
            counts = np.stack([prediction.intersection.sum(0), prediction.predicted.sum(0)])
            sums[exit_id] = sums.get(exit_id, 0) + counts
    miou = {exit_id: float(mean_iou(*counts, label)) for exit_id, counts in sums.items()}
    iterations = getattr(config.training, stage).iterations
    log.append(f"{stage}-holdout", iterations, **miou)
    reporter.message(
        f"{stage}: mIoU of the final exit on {len(data)} held-out images {miou[FINAL]:.3f}."
    )


def _memoise_parts(
    network: OverprovisionedNetwork,
    data: SegmentationData,
    config: Config,
    specs: Sequence[SignalSpec],
    store: PredictionStore,
    parts: Sequence[int],
    split: str,
    reporter: Reporter,
) -> dict[str, tuple[int, int]]:
    """Write the lacking parts; the native output sizes of the exits."""
    from mess.data import evaluation_loader
    from mess.prediction import predict
    from mess.programs import native_shapes

    device = next(network.parameters()).device
    with reporter.task(f"memoising {split}", len(data), len(data) - _images(parts, len(data))) as task:
        for part in parts:
            chosen = range(part * _PART_IMAGES, min((part + 1) * _PART_IMAGES, len(data)))
            subset = data.select(chosen, f"part {part} of {data.where}")
            loader = evaluation_loader(subset, config.data, batch_size=config.memoise.batch_size)
            rows: list[dict[str, Any]] = []
            for indices, predictions in predict(
                network,
                loader,
                specs,
                device=device,
                confidence_maps=config.memoise.confidence_maps,
            ):
                ids = [subset.ids[index] for index in indices]
                for exit_id, prediction in predictions.items():
                    rows += prediction.rows(exit_id, ids, label_maps=config.memoise.label_maps)
                task.advance(len(ids))
            store.write_part(part, rows)
    return native_shapes(network, config.data.size)


def _images(parts: Sequence[int], images: int) -> int:
    return sum(min(_PART_IMAGES, images - part * _PART_IMAGES) for part in parts)


def _trained(place: Run, config: Config, device: torch.device) -> OverprovisionedNetwork:
    """The trained network of a run, in eval mode."""
    import torch

    from mess.candidates import candidates
    from mess.network import build_network, frozen, load_weights

    if not place.weights.exists():
        raise MessError(
            f"{place.path} has no trained network yet. Run `mess train-overprovisioned` to go on."
        )
    classes = _num_classes(config)
    # The weights file replaces whatever the backbone would start from.
    blank = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"weights": "none"})}
    )
    network = build_network(blank, candidates(blank, classes), classes)
    load_weights(network, place.weights)
    frozen(network)
    return network.to(device, memory_format=torch.channels_last)


def _num_classes(config: Config) -> int:
    return _classes(config).num_classes


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise MessError(f"--device {name!r} is no torch device: {error}.") from error


def _profile_is_current(place: Run, name: str) -> bool:
    from mess.cache.parquet import read_facts

    path = place.latency(name)
    return path.exists() and read_facts(path)["weights"] == sha256(place.weights)


def _progress(task: Any) -> Callable[[int, int], None]:
    """A searcher's (done, total) as steps of a task whose total is 1."""
    reached = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reached
        share = done / total if total else 1.0
        task.advance(share - reached)
        reached = share

    return report


def _amount(value: str | float | None, baseline: float, option: str) -> float | None:
    """A number, or a multiple of the baseline written as "0.5x"."""
    if value is None or isinstance(value, float | int):
        return value
    text, scale = (value[:-1], baseline) if value.endswith("x") else (value, 1.0)
    try:
        return float(text) * scale
    except ValueError:
        raise MessError(
            f'{option} takes a number or a multiple of the baseline such as "0.5x", got {value!r}.'
        ) from None


def _checkpoint(text: str) -> tuple[float, float]:
    cost, equals, miou = text.partition("=")
    try:
        return float(cost), float(miou)
    except ValueError:
        raise MessError(f"--checkpoint takes COST=MIOU such as 5.0=0.6, got {text!r}.") from None


def _search_name(request: Any) -> str:
    limits = {name: value for name, value in request.constraints().items() if name.startswith("m")}
    limits.pop("max_exits")
    parts = [request.setting, request.target, *(f"{k}-{v:g}" for k, v in limits.items())]
    return "-".join(parts).replace("_", "-")


def _export(
    place: Run,
    config: Config,
    network: OverprovisionedNetwork,
    result: Mapping[str, Any],
    search_id: str,
    directory: Path,
    format_: Literal["onnx", "torch"],
    reporter: Reporter,
) -> Path:
    from mess.export import PlannedExit, export_bundle

    tables, manifest = load_tables(place)
    specs = {signal["name"]: SignalSpec.from_json(signal) for signal in manifest["signals"]}
    rows = {row["exit_id"]: row for row in exit_rows(place)}
    planned = []
    heads = 0
    for chosen in result["exits"]:
        row = rows[chosen["exit_id"]]
        heads += row["exit_macs"]
        signal = chosen["signal"]
        planned.append(
            PlannedExit(
                exit_id=chosen["exit_id"],
                point=row["point"],
                macs=row["backbone_macs"] + heads,
                signal=specs[signal] if signal else None,
                threshold=chosen["threshold"],
                exit_rate=chosen["exit_rate"],
                calibration_signal=(
                    tables.signals[
                        tables.exit_ids.index(chosen["exit_id"]),
                        :,
                        tables.signal_names.index(signal),
                    ]
                    if signal
                    else None
                ),
            )
        )
    facts = {
        "setting": result["setting"],
        "predicted": result["predicted"],
        "baseline": result["baseline"],
        "source": {"search": search_id, **result["cache"]},
        **_class_facts(config),
    }
    return export_bundle(
        network,
        planned,
        directory,
        size=config.data.size,
        format_=format_,
        facts=facts,
        reporter=reporter,
    )


def _export_baseline(
    place: Run,
    config: Config,
    network: OverprovisionedNetwork,
    result: Mapping[str, Any],
    format_: Literal["onnx", "torch"],
    reporter: Reporter,
) -> None:
    """Export the network run to its end, unless these weights were exported already."""
    from mess.runtime import read_manifest

    directory = _baseline_path(place, format_)
    source = {"search": None, **result["cache"]}
    try:
        if read_manifest(directory)["source"] == source:
            return
    except BundleError:
        pass  # there is none yet, or a damaged one
    final = {"exit_id": FINAL, "signal": None, "threshold": None, "exit_rate": 1.0}
    whole = {
        **result,
        "setting": "final-only",
        "exits": [final],
        "predicted": result["baseline"],
    }
    _export(place, config, network, whole, None, directory, format_, reporter)


def _classes(config: Config) -> ClassTable:
    from mess.data import open_split

    return open_split(config.data, "train", config.seed).classes


def _class_facts(config: Config) -> dict[str, Any]:
    table = _classes(config)
    return {
        "classes": list(table.names),
        "palette": [list(color) for color in table.colors],
        "ignore_index": table.ignore_index,
    }


def _baseline_path(place: Run, format_: str) -> Path:
    return place.bundle(BASELINE if format_ == "onnx" else f"{BASELINE}-{format_}")


def _baseline_bundle(place: Run, format_: str) -> Path:
    path = _baseline_path(place, format_)
    if not path.is_dir():
        raise BundleError(f"{path} is missing. Run `mess export` to write it again.")
    return path


def _newest_bundle(place: Run) -> Path:
    bundles = [
        file.parent
        for file in (place.path / "exports").glob("*/manifest.json")
        if not file.parent.name.startswith(BASELINE)
    ]
    if not bundles:
        raise BundleError(f"{place.path} has no bundle yet. Run `mess export` first.")
    return max(bundles, key=lambda bundle: (bundle / "manifest.json").stat().st_mtime_ns)


def _run_of(bundle: Path | None) -> Path | None:
    """The run a bundle lies in, where it lies in one."""
    if bundle is None:
        return None
    folder = bundle.resolve().parent.parent
    return folder if (folder / "config.toml").is_file() else None


def _agreement(place: Run, manifest: Mapping[str, Any], ours: Any) -> dict[str, Any]:
    """How the bundle's run compares with what the search computed from the cache."""
    from mess.policy import answering_exit

    tables, _ = load_tables(place)
    early = manifest["exits"][:-1]
    if manifest["setting"] == "input-dependent":
        observed = [
            tables.signals[
                tables.exit_ids.index(exit_["exit_id"]),
                :,
                tables.signal_names.index(exit_["signal"]["name"]),
            ]
            for exit_ in early
        ]
        expected = answering_exit(
            observed, [exit_["threshold"] for exit_ in early], tables.images
        )
    else:
        expected = np.full(tables.images, len(early))
    predicted = manifest["predicted"]
    return {
        "same_exit": float(np.mean(expected == np.array(ours.taken))),
        "predicted_miou": predicted["miou"],
        "predicted_macs": predicted["macs"],
        "predicted_latency_ms": predicted["latency_ms"],
    }
