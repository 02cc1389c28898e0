"""The command line: parse, call one function of `mess.workflow`, print."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mess import __version__, workflow
from mess.cli.options import (
    Algorithm,
    BundleFormat,
    CacheArgument,
    ConfigArgument,
    DeviceOption,
    ImagesOption,
    JsonOption,
    LabelsOption,
    LatencyStat,
    PublicKeyOption,
    RunOption,
    RuntimeName,
    Sampler,
    SetOption,
    Setting,
    Target,
    ThreadsOption,
    TrustOption,
    parse_size,
)
from mess.cli.progress import reporter
from mess.cli.tables import (
    print_caches,
    print_ceiling,
    print_estimate,
    print_evaluation,
    print_exits,
    print_policies,
    print_predictions,
    print_search,
    print_tuning,
    print_verification,
)
from mess.cli.terminal import be_quiet, complain, note, print_json, say
from mess.common.plugins import LISTENERS
from mess.errors import InterruptedWork, MessError
from mess.runtime.registry import DEFAULT_RUNTIME
from mess.sentences.bundles import verified_lines
from mess.sentences.certificates import certified_lines

app = typer.Typer(
    name="mess",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a segmentation network with every exit, search it, ship the instance you need.",
)

cache = typer.Typer(no_args_is_help=True, help="Look after the stored predictions of a run.")
app.add_typer(cache, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version


@app.command()
def train_overprovisioned(
    config: ConfigArgument = None,
    run: RunOption = None,
    overrides: SetOption = None,
    adopt: Annotated[
        Path | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Of a trained network (.safetensors, .pth, .pt), which stays as it is, bit for "
            "bit: exits alone are trained.",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the network with all its exits, memoise and measure them; run again, it resumes."""
    with reporter() as listener:
        place = workflow.train_overprovisioned(
            config,
            run=run,
            overrides=overrides or (),
            adopt=adopt,
            device=device,
            reporter=listener,
        )
    named = "" if run is None else f" --run {shlex.quote(str(run))}"
    say(f"Trained: {place.path}. Next: mess search --target latency --max-error 0.01{named}")


@app.command()
def tune(
    config: ConfigArgument = None,
    overrides: SetOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="Of the trials; runs/tune-CONFIG by default.")
    ] = None,
    rates: Annotated[list[float] | None, typer.Option("--rate", help="To try; repeatable.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Of the configured iterations; 0.2 by default.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose learning rates by short trainings, judged on held-out training images."""
    with reporter() as listener:
        found = workflow.tune(
            config,
            folder=folder,
            overrides=overrides or (),
            rates=rates,
            share=share,
            device=device,
            reporter=listener,
        )
    if as_json:
        print_json(found)
    else:
        print_tuning(found)


@app.command()
def exits(
    config: ConfigArgument = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """List the candidate exits of a configuration, without training."""
    rows = workflow.exits(config, overrides=overrides or ())
    if as_json:
        print_json(rows)
        return
    print_exits(rows)


@app.command()
def estimate(
    config: ConfigArgument = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the hours and the memory that training would take here, by a few steps of it."""
    with reporter() as listener:
        found = workflow.estimate(
            config, overrides=overrides or (), device=device, reporter=listener
        )
    if as_json:
        print_json(found)
    else:
        print_estimate(found)


@app.command()
def ceiling(
    config: ConfigArgument = None,
    overrides: SetOption = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="HEIGHTxWIDTH", help="Instead of data.size; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, calibration or test.")] = "train",
    as_json: JsonOption = False,
) -> None:
    """Tell what mIoU each output stride can about reach, by class, before anything is trained."""
    with reporter() as listener:
        found = workflow.ceiling(
            config,
            overrides=overrides or (),
            sizes=[parse_size(size) for size in sizes or ()],
            split=split,
            reporter=listener,
        )
    if as_json:
        print_json(found)
    else:
        print_ceiling(found)


@app.command()
def memoise(
    run: RunOption = None,
    split: Annotated[
        str | None, typer.Option(help="calibration, test or train; calibration by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the cache; the split by default.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Of another data set; needs --name of its own.")
    ] = None,
    images: ImagesOption = None,
    labels: LabelsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Store every exit's predictions on a split."""
    with reporter() as listener:
        path = workflow.memoise(
            run,
            split=split,
            name=name,
            root=root,
            images=images,
            labels=labels,
            device=device,
            reporter=listener,
        )
    say(f"Predictions: {path}")


@cache.command("info")
def cache_info(run: RunOption = None, as_json: JsonOption = False) -> None:
    """List the caches of a run: content, size, and whether anything is missing or stale."""
    rows = workflow.cache_info(run)
    if as_json:
        print_json(rows)
        return
    print_caches(rows)


@cache.command("verify")
def cache_verify(
    name: CacheArgument = None, run: RunOption = None, as_json: JsonOption = False
) -> None:
    """Check every file, row and pair, and hold them against weights and data."""
    with reporter() as listener:
        rows = workflow.cache_verify(run, name=name, reporter=listener)
    if as_json:
        print_json(rows)
    else:
        print_verification(rows)
    if any(row["faults"] for row in rows):
        raise typer.Exit(1)


@cache.command("prune")
def cache_prune(
    name: CacheArgument = None,
    run: RunOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete files that nothing reads any more."""
    rows = workflow.cache_prune(run, name=name, dry_run=dry_run)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['file']} ({row['bytes'] / 1e6:.2f} MB)")
    total = sum(row["bytes"] for row in rows)
    say(f"{len(rows)} files, {total / 1e6:.2f} MB{', not deleted' if dry_run else ' deleted'}.")


@app.command()
def profile(
    run: RunOption = None,
    runtime: Annotated[
        RuntimeName, typer.Option(help="What runs the parts.")
    ] = DEFAULT_RUNTIME.name,
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of every part.")] = 30,
    name: Annotated[str | None, typer.Option(help="Name of the profile.")] = None,
) -> None:
    """Measure every segment and exit on this machine."""
    with reporter() as listener:
        path = workflow.profile(
            run, runtime=runtime, threads=threads, rounds=rounds, name=name, reporter=listener
        )
    say(f"Latencies: {path}")


@app.command()
def search(
    run: RunOption = None,
    setting: Annotated[Setting, typer.Option(help="How the instance runs.")] = "input-dependent",
    target: Annotated[Target, typer.Option(help="Minimised; accuracy is maximised.")] = "latency",
    max_error: Annotated[float | None, typer.Option(help="mIoU that may be lost.")] = None,
    min_miou: Annotated[float | None, typer.Option(help="mIoU to reach, in [0, 1].")] = None,
    max_lost: Annotated[float | None, typer.Option(help="Share of lost pixels.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Milliseconds.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Or 0.5x the baseline's.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="COST=MIOU", help="Anytime, or early=MIOU; repeatable."),
    ] = None,
    latency_stat: Annotated[LatencyStat, typer.Option(help="Over the images.")] = "mean",
    profile: Annotated[str | None, typer.Option(help="Latency profile of the run.")] = None,
    cache: Annotated[str, typer.Option(help="Predictions to search.")] = "calibration",
    policy: Annotated[str | None, typer.Option(help="Signals that decide.")] = None,
    shared_threshold: Annotated[
        bool, typer.Option("--shared-threshold", help="One for all early exits.")
    ] = False,
    confidence: Annotated[float | None, typer.Option(help="On new images, as 0.95.")] = None,
    certify: Annotated[str, typer.Option(help="cross, or a fresh cache.")] = "cross",
    expect: Annotated[bool, typer.Option("--expect", help="Tell new images' error.")] = False,
    max_exits: Annotated[int, typer.Option(min=1, help="Proven up to 4.")] = 3,
    thresholds: Annotated[int, typer.Option(min=1, help="Each of two early exits.")] = 64,
    no_front: Annotated[bool, typer.Option("--no-front", help="Only the answer.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore earlier fronts.")] = False,
    algorithm: Annotated[Algorithm, typer.Option(help="optuna samples, unproven.")] = "exhaustive",
    trials: Annotated[int | None, typer.Option(min=1, help="Of optuna, in all; 2000.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Of optuna.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best instance without retraining."""
    # Before anything else is assigned, which would be an option, too.
    options = locals()  # as `workflow.search` calls them, but for these:
    del options["run"], options["as_json"]
    options["checkpoints"] = options.pop("checkpoint") or ()
    options["front"] = not options.pop("no_front")
    with reporter() as listener:
        result = workflow.search(run, reporter=listener, **options)
    if as_json:
        print_json(result)
    elif "policies" in result:
        print_policies(result)
    else:
        print_search(result)


@app.command()
def export(
    run: RunOption = None,
    search: Annotated[
        str | None, typer.Option(help="The newest by default, of compared policies the best.")
    ] = None,
    format: Annotated[
        BundleFormat, typer.Option(help="What the bundle holds.")
    ] = DEFAULT_RUNTIME.format,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
) -> None:
    """Write the bundle of a search's instance."""
    with reporter() as listener:
        path = workflow.export(run, search=search, format=format, output=output, reporter=listener)
    say(f"Bundle: {path}")
    say(f"Digest: {workflow.bundle_digest(path)}")


@app.command()
def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="The newest of the run by default.")] = None,
    run: RunOption = None,
    split: Annotated[str | None, typer.Option(help="test or calibration; test by default.")] = None,
    images: ImagesOption = None,
    labels: LabelsOption = None,
    threads: ThreadsOption = 1,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle on a split, in turns with the network run to its end."""
    with reporter() as listener:
        report = workflow.evaluate(
            bundle,
            run=run,
            split=split,
            images=images,
            labels=labels,
            threads=threads,
            trust=trust,
            reporter=listener,
        )
    if as_json:
        print_json(report)
    else:
        print_evaluation(report)


@app.command()
def certify(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="The safest first; the newest by default.")
    ] = None,
    run: RunOption = None,
    max_error: Annotated[
        float | None, typer.Option(help="mIoU that may be lost; the search's by default.")
    ] = None,
    min_miou: Annotated[float | None, typer.Option(help="mIoU to reach, in [0, 1].")] = None,
    confidence: Annotated[float, typer.Option(help="Between 0.5 and 1.")] = 0.95,
    split: Annotated[str, typer.Option(help="Of images that chose nothing.")] = "test",
    root: Annotated[Path | None, typer.Option("--data", help="Folder of another data set.")] = None,
    threads: ThreadsOption = 1,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Certify bundles by running them on fresh images; exit code 1 where the first fails."""
    with reporter() as listener:
        report = workflow.certify(
            bundles or (), run=run, max_error=max_error, min_miou=min_miou, confidence=confidence,
            split=split, root=root, threads=threads, trust=trust, reporter=listener,
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        for line in certified_lines(report):
            say(line)
    if not report["tested"][0]["holds"]:
        raise typer.Exit(1)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    images: Annotated[list[Path], typer.Argument(help="Images of any size.")],
    output: Annotated[Path, typer.Option(help="Folder of the label maps.")] = Path("predictions"),
    threads: ThreadsOption = 1,
    trust: TrustOption = False,
    public_key: PublicKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the label maps of images as palette PNGs."""
    rows = workflow.predict(
        bundle, images, output=output, threads=threads, trust=trust, public_key=public_key
    )
    if as_json:
        print_json(rows)
        return
    print_predictions(rows)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    digest: Annotated[
        str | None, typer.Option(help="It must have; `mess export` tells it.")
    ] = None,
    public_key: PublicKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a bundle is what was exported, without running it."""
    found = workflow.verify(bundle, digest=digest, public_key=public_key)
    if as_json:
        print_json(found)
        return
    for line in verified_lines(found):
        say(line)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path, typer.Option(help="PEM file of an Ed25519 private key.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle and its certificate, for those who have the key's public half."""
    found = workflow.sign(bundle, key)
    if as_json:
        print_json(found)
        return
    say(f"Signed: {bundle}")
    say(f"Digest: {found['digest']}")


@app.command()
def report(run: RunOption = None) -> None:
    """Write one self-contained HTML file about a run."""
    say(f"Report: {workflow.report(run)}")


def main() -> None:
    """Entry point: an error a user can act on is one message on stderr and exit code 1.

    Of the processes torchrun starts, the first one alone says what it did.
    """
    # Read from the environment: to ask torch would load it for every command.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        be_quiet()
    if note not in LISTENERS:
        LISTENERS.append(note)
    try:
        app()
    # Before MessError, of which it is a kind; 128 + N is what shells report after signal N.
    except InterruptedWork as error:
        complain(str(error))
        sys.exit(128 + error.signal_number)
    except MessError as error:
        complain(str(error))
        sys.exit(1)
    except OSError as error:
        # Without a file there is nothing for a user to check: the traceback is of use then.
        if error.filename is None:
            raise
        complain(f"{error.filename}: {error.strerror}. Check the path, its permissions and space.")
        sys.exit(1)
