"""One plain function per command.

Functions that need torch import it when they run: `mess search` and `mess --help` start without.

May import: errors, config, commands, common, compute, data, export, networks,
networks.backbones, report, runs, runtime, search.exact, signals.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from mess.commands.certify_options import CertifyOptions
from mess.commands.search_options import SearchOptions
from mess.common.progress import Once, Reporter, Silent
from mess.config import Config, load_config
from mess.errors import CacheError
from mess.runs.part_costs import DEFAULT_PROFILE
from mess.runs.profiles import read_profile
from mess.runs.run import RUNS, Run, begin_run, find_run
from mess.runs.sources import require_labels
from mess.runtime.registry import DEFAULT_RUNTIME
from mess.search.exact.workers import Team
from mess.signals.registry import PAIR_SIGNALS, configured_signals

_SILENT = Silent()

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _with_keywords_of(options: type) -> Callable[[_Function], _Function]:
    """Have `help` and notebooks show the fields of `options` where a function takes **options."""

    def shown(function: _Function) -> _Function:
        own = signature(function)
        *parameters, _ = own.parameters.values()
        parameters += signature(options).parameters.values()
        setattr(function, "__signature__", own.replace(parameters=parameters))  # noqa: B010
        return function

    return shown


def train_overprovisioned(
    config: str | Path | None = None,
    *,
    run: Path | None = None,
    overrides: Sequence[str] = (),
    adopt: Path | None = None,
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> Run:
    """Train both stages, memoise the calibration split and measure latency; resumes where it was.

    `config` is a shipped name or a TOML file ("quickstart" by default; the run's own configuration
    where `run` has one). `adopt` are the weights of a trained network, whose backbone and final
    exit stay as they are, to the last bit; exits alone are trained. Returns the run.
    """
    from mess.commands.memoise import memoise_split
    from mess.commands.profile import measure_run
    from mess.commands.train import remove_progress, train_network
    from mess.compute.processes import torchrun_processes

    with torchrun_processes() as processes:
        reporter = Once(reporter) if processes.is_first else _SILENT
        path = str(_begin(config, run, overrides, adopt).path) if processes.is_first else ""
        place = Run(Path(processes.tell(path)))
        reporter.message(f"Run: {place.path}")
        # A checkpoint beside the weights: a kill came before it was deleted.
        trained = place.weights.exists() and not place.checkpoint.exists()
        if processes.most(not trained):
            with place.locked() if processes.is_first else nullcontext():
                train_network(place, device, reporter, processes, adopt)
        elif processes.is_first:
            remove_progress(place)
        # After the lock, not within: memoising takes it itself, and it is not to be had twice.
        memoise_split(place, None, None, None, device, reporter, processes)
        if processes.is_first and not _profile_is_current(place):
            measure_run(place, reporter=reporter)
    return place


def tune(
    config: str | Path | None = None,
    *,
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    rates: Sequence[float] | None = None,
    share: float | None = None,
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """Choose learning rates by short trainings on held-out training images; resumes where it was.

    Each of `rates`, or of some that suit the optimiser, is tried for `share` of the configured
    iterations. Trials lie below `folder`, by default runs/tune-CONFIG.
    """
    from mess.commands.tune import SHARE, tune

    source = config or "quickstart"
    return {
        **tune(
            load_config(source, overrides), folder or RUNS / f"tune-{Path(source).stem}",
            rates, SHARE if share is None else share, device, reporter,
        )
    }  # fmt: skip


def exits(
    config: str | Path | None = None, *, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The candidate exits of a configuration as rows of exits.parquet, without training."""
    from mess.data import open_split
    from mess.export.programs import require_exportable_backbone
    from mess.networks.backbones.outputs import channels_of
    from mess.networks.candidates import candidates, require_early_exit

    settings = load_config(config or "quickstart", overrides)
    configured_signals(settings.memoise)  # raises for what training would refuse
    classes = open_split(settings.data, "train", settings.seed).classes
    if settings.backbone.outputs is not None:
        channels_of(settings.backbone.outputs, classes.names)  # the same
    rows = candidates(settings, classes.num_classes)
    require_early_exit(rows)
    require_exportable_backbone(settings, classes.num_classes)
    return [asdict(row) for row in rows]


def ceiling(
    config: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = (),
    split: str = "train",
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """What mIoU each output stride can about reach on a split, by class, before any training.

    `sizes` are (height, width) in pixels; the configuration's `data.size` where there are none.
    """
    from mess.commands.ceiling import ceilings

    return ceilings(load_config(config or "quickstart", overrides), sizes, split, reporter)


def estimate(
    config: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """Hours and memory that training would take here, by a few steps of each stage."""
    from mess.commands.estimate import estimate

    return {**estimate(load_config(config or "quickstart", overrides), device, reporter)}


def memoise(
    run: Path | None = None,
    *,
    split: str | None = None,
    name: str | None = None,
    root: Path | None = None,
    images: Path | None = None,
    labels: str | None = None,
    device: str = "auto",
    reporter: Reporter = _SILENT,
) -> Path:
    """Store every exit's predictions on a split; what is stored and still true is kept.

    Returns the cache's directory, RUN/cache/NAME. `split` is "calibration" by default, and `name`
    is the split. `root` is that of another data set of the same kind, such as images from another
    device, and needs a `name` of its own; with that name alone its cache is brought up to date.
    `images` is a folder of pictures without masks and `name` by default the folder's; `labels`,
    "final", says that they are counted against the final exit.
    """
    from mess.commands.memoise import memoise_split
    from mess.compute.processes import torchrun_processes

    require_labels(images, labels, split=split, root=root)
    with torchrun_processes() as processes:
        reporter = reporter if processes.is_first else _SILENT
        # The first one's answer for all: the newest run may be another a moment later.
        place = Run(Path(processes.tell(str(find_run(run).path))))
        store = memoise_split(place, split, name, root, device, reporter, processes, images)
        return store.directory


def cache_info(run: Path | None = None) -> list[dict[str, Any]]:
    """One row a cache of a run: content, bytes, and its `state`, "ready" or what is wrong.

    Only `cache_verify` reads all of it and looks at the data.
    """
    from mess.commands.caches import describe_caches

    return describe_caches(find_run(run))


def cache_verify(
    run: Path | None = None, *, name: str | None = None, reporter: Reporter = _SILENT
) -> list[dict[str, Any]]:
    """Check every file of a cache, of all by default, and hold it against run and data.

    One row a cache: `parts`, `rows`, `bytes`, `seconds`, and `faults`, a sentence each.
    """
    from mess.commands.caches import verify_caches

    return verify_caches(find_run(run), name, reporter)


def cache_prune(
    run: Path | None = None, *, name: str | None = None, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Delete the files of a cache, of all by default, that nothing reads any more.

    One row a file, with its `bytes`.
    """
    from mess.commands.caches import prune_caches

    return prune_caches(find_run(run), name, dry_run=dry_run)


def profile(
    run: Path | None = None,
    *,
    runtime: str = DEFAULT_RUNTIME.name,
    threads: int = 1,
    rounds: int = 30,
    name: str | None = None,
    reporter: Reporter = _SILENT,
) -> Path:
    """Measure every segment and exit on this machine; returns RUN/latency/NAME.parquet.

    `runtime` is one of `mess.runtime.registry.RUNTIMES`, `name` is RUNTIME-Nthread by default.
    """
    from mess.commands.profile import measure_run

    return measure_run(find_run(run), runtime, threads, rounds, name, reporter=reporter)


@_with_keywords_of(SearchOptions)
def search(
    run: Path | None = None, *, reporter: Reporter = _SILENT, **options: Any
) -> dict[str, Any]:
    """Find the best instance without retraining; returns result.json, `id` and `path` added.

    `options` are the fields of `mess.commands.search_options.SearchOptions`, such as `target`,
    `max_error` and `max_latency`. With `policy="all"` it returns
    `mess.commands.compare.compare_policies`. Raises InfeasibleError when nothing meets the limits.
    """
    from mess.commands.search import search_run as find
    from mess.runs.policies import ALL

    place, asked = find_run(run), SearchOptions(**options)
    if asked.policy == ALL:
        # Only this draws figures, whose libraries take as long to load as many a search.
        from mess.commands.compare import compare_policies as find

    with _team() as team:
        if team:
            place = Run(Path(team.gather(str(place.path).encode())[0].decode()))
            reporter = _SILENT if team.rank else reporter
        return dict(find(place, asked, reporter, team))


def export(
    run: Path | None = None,
    *,
    search: str | None = None,
    format: str = DEFAULT_RUNTIME.format,
    output: Path | None = None,
    reporter: Reporter = _SILENT,
) -> Path:
    """Write the bundle of a search's instance; returns its folder.

    `search` is the newest by default, of policies that were compared the best.
    `format` is one of `mess.runtime.registry.FORMATS`. The network run to its end is exported once
    beside it, for comparisons.
    """
    from mess.commands.export import export_search

    place = find_run(run)
    place.require_weights()
    return export_search(place, place.require_search(search), format, output, reporter)


def evaluate(
    bundle: Path | None = None,
    *,
    run: Path | None = None,
    split: str | None = None,
    images: Path | None = None,
    labels: str | None = None,
    threads: int = 1,
    trust: bool = False,
    reporter: Reporter = _SILENT,
) -> dict[str, Any]:
    """Run a bundle for real on a split, in turns with the network run to its end.

    `bundle` is the newest of the run by default, `split` is "test". In its place `images` may be a
    folder of pictures without masks; `labels`, "final", says that they are counted against the
    network run to its end. On the images that were searched the report says how far the bundle
    agrees with what the search predicted. A bundle of a format that is code is run with `trust`
    alone.
    """
    from mess.commands.evaluate import evaluate_bundle
    from mess.runs.bundles import run_of

    require_labels(images, labels, split=split)
    place = find_run(run_of(bundle) if run is None and bundle is not None else run)
    return evaluate_bundle(place, bundle, split or "test", threads, reporter, images, trust=trust)


@_with_keywords_of(CertifyOptions)
def certify(
    bundles: Sequence[Path] = (),
    *,
    run: Path | None = None,
    reporter: Reporter = _SILENT,
    **options: Any,
) -> dict[str, Any]:
    """Certify bundles by running them on images that chose nothing; returns what was found.

    `bundles` are tested in the order given, up to the first that fails; the newest of the run by
    default. `options` are the fields of `mess.commands.certify_options.CertifyOptions`. Using
    images again spends confidence. Raises DataError for images that chose or trained a bundle.
    """
    from mess.commands.certify import certify_bundles
    from mess.runs.bundles import run_of

    asked = CertifyOptions(**options)
    place = find_run(run_of(bundles[0]) if run is None and bundles else run)
    return certify_bundles(place, bundles, asked, reporter)


def predict(
    bundle: Path,
    images: Sequence[Path],
    *,
    output: Path,
    threads: int = 1,
    trust: bool = False,
    public_key: Path | None = None,
) -> list[dict[str, Any]]:
    """Write the label map of every image to `output` as a palette PNG of the image's own size.

    Returns, per image, the file, the exit taken and its signal. A bundle of a format that is code
    is run with `trust` alone; with a `public_key` it must be signed by the other half.
    """
    from mess.commands.predict import predict_images

    return predict_images(
        bundle, images, output, threads=threads, trust=trust, public_key=public_key
    )


def bundle_digest(bundle: Path) -> str:
    """The digest of a bundle, as its manifest says it; `verify` reads all of its files."""
    from mess.runtime.manifest import read_manifest

    return read_manifest(bundle)["digest"]


def sign(bundle: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle, and the certificate that it carries, with an Ed25519 key in a PEM file.

    Returns what it is, as `verify` does. Raises BundleError where the bundle was altered, MessError
    for a file without such a key.
    """
    from mess.commands.verify import sign_bundle

    return sign_bundle(bundle, key)


def verify(
    bundle: Path, *, digest: str | None = None, public_key: Path | None = None
) -> dict[str, Any]:
    """Check that a bundle is what was exported, without running it.

    Where given, it must have `digest` and be signed by the other half of `public_key`. Returns what
    it is; raises BundleError that names what is wrong.
    """
    from mess.commands.verify import verify_bundle

    return verify_bundle(bundle, digest, public_key)


def report(run: Path | None = None) -> Path:
    """Write RUN/report.html, one self-contained file: exits, latencies, searches, fronts."""
    from mess.report.page import write_report

    return write_report(find_run(run))


def _begin(
    config: str | Path | None, run: Path | None, overrides: Sequence[str], adopt: Path | None
) -> Run:
    from mess.commands.adopt import adopting

    if config is None and run is not None and (run / "config.toml").is_file():
        resolved = load_config(run / "config.toml", overrides)
    else:
        resolved = load_config(config or "quickstart", overrides)
    resolved = _absolute(resolved)
    if adopt is not None:
        resolved = adopting(resolved, adopt)
    return begin_run(run, resolved, Path(config or "quickstart").stem)


@contextmanager
def _team() -> Iterator[Team | None]:
    """The processes torchrun started, where it started this one."""
    # Looked at before torch is loaded, which a search alone does without.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield None
        return
    from mess.compute.processes import torchrun_processes

    with torchrun_processes() as processes:
        yield processes if processes.count > 1 else None


def _absolute(config: Config) -> Config:
    """A run may be resumed from another folder."""
    data, backbone = config.data, config.backbone
    if data.root is not None:
        data = data.model_copy(update={"root": data.root.resolve()})
    if data.groups_file is not None:
        data = data.model_copy(update={"groups": str(data.groups_file.resolve())})
    if backbone.weights not in ("none", "torchvision"):
        weights = str(Path(backbone.weights).resolve())
        backbone = backbone.model_copy(update={"weights": weights})
    training = config.training
    if training.start is not None:
        training = training.model_copy(update={"start": training.start.resolve()})
    return config.model_copy(update={"data": data, "backbone": backbone, "training": training})


def _profile_is_current(place: Run) -> bool:
    path = place.latency(DEFAULT_PROFILE)
    try:
        _, facts = read_profile(path)
    except CacheError:
        return False  # none yet, or a damaged one
    wanted = [*configured_signals(place.config.memoise), *PAIR_SIGNALS.values()]
    names = [signal.name for signal in wanted]
    # Signals are measured one by one, so a new one is missing from an old profile.
    return facts.get("weights") == place.weights_sha256 and facts.get("signals") == names
