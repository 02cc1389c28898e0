"""Certifying bundles on images that chose nothing, by running them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mess.commands.certify_options import CertifyOptions
from mess.commands.check_data import labelled_pixels, say_what_is_missing
from mess.commands.fresh_images import cache_groups, training_images
from mess.common.files import write_json
from mess.common.metrics import MASKS
from mess.common.progress import Reporter
from mess.common.records import DIGEST, read_record, require_unaltered, with_digest
from mess.data import SegmentationData
from mess.errors import BundleError, CacheError, DataError, MessError
from mess.runs.bundles import (
    counts_of_run,
    exit_rates_of,
    load_baseline,
    newest_bundle,
    require_input,
)
from mess.runs.data_sets import require_trained_classes
from mess.runs.groups import distinct_groups, groups_of, shared_groups
from mess.runs.intervals import rare_names
from mess.runs.near_identical import (
    NearIdentical,
    Thumbnails,
    among_searched,
    in_other_groups,
    thumbnails_of,
)
from mess.runs.plans import RESULT, Plan, confidence_together, settling
from mess.runs.results import CALIBRATION
from mess.runs.run import Run
from mess.runs.sources import ImageSource
from mess.runtime.bundle import Bundle, load_bundle
from mess.runtime.bundle_run import BundleRun, run_in_turns
from mess.runtime.format import MANIFEST
from mess.runtime.manifest import SIGNATURE, read_manifest, sealed
from mess.search.guarantees.claims import Claim, Ran
from mess.search.guarantees.cross_fit import narrowest, outcomes_on
from mess.search.guarantees.groups import Groups, Strength
from mess.search.guarantees.methods import RUN_FOR_REAL
from mess.search.problem.costs import MACS

_AGAIN = "Remove it and certify again: the plan is the same, and counts once."


class Certified(TypedDict):
    """What is read of a result again."""

    plan: str
    digest: str
    confidence_together: float
    tested: list[dict[str, Any]]


def certify_bundles(
    place: Run, paths: Sequence[Path], options: CertifyOptions, reporter: Reporter
) -> dict[str, Any]:
    """Certify bundles in the order given, up to the first that fails; the newest if none is given.

    Returns the content of RUN/certificates/ID/result.json. Each bundle that was tested has what
    was found in its manifest. A plan that was carried out before is not carried out again.
    """
    bundles = [
        load_bundle(path, threads=options.threads, trust=options.trust)
        for path in paths or [newest_bundle(place)]
    ]
    baselines = []
    for bundle in bundles:
        require_input(place, bundle)
        _require_masks(bundle)
        # Of bundles of several formats the first one's runtime runs the network to its end.
        baselines.append(load_baseline(place, bundle, options.threads))
    limits = options.limits or _searched_limits(place, bundles[0])
    source = ImageSource(options.split, options.root and options.root.resolve())
    data = source.open(place, "--data")
    require_trained_classes(place, data)
    images = data.image_fingerprints()
    groups = distinct_groups(place.config.data, images)
    plan = Plan(
        tested=[bundle.digest for bundle in bundles],
        limits=limits,
        confidence=options.confidence,
        split=options.split,
        root=None if source.root is None else str(source.root),
        images=images,
        groups=[groups.names[group] for group in groups.of_image],
    )
    _require_others(place, bundles, plan, data, reporter)
    strength = _strength(place, bundles, groups, data.ids, reporter)
    labelled_pixels(data)  # refuses what can certify nothing before it is used
    with settling(place):
        together = confidence_together(place, plan)
        folder = plan.write(place)
    with suppress(FileNotFoundError):
        known = _known(folder / RESULT, plan)
        reporter.message(f"Carried out before: {folder / RESULT}")
        told = {**known, "confidence_together": together}
        # A bundle may have been exported again, or a kill may have come between.
        _write_manifests(bundles, told, reporter)
        return told
    runs = [BundleRun(each) for each in [*bundles, baselines[0]]]
    thumbnails: list[bytes] = []
    with reporter.task(f"certifying on {options.split}", len(data)) as task:
        run_in_turns(runs, _seen(data, thumbnails), task)
    say_what_is_missing(data, np.sum(runs[0].label, axis=0), reporter)
    report = with_digest(
        {
            "plan": plan.digest,
            "path": str(folder),
            "split": options.split,
            "root": plan.root,
            "images": len(data),
            "confidence_together": together,
            "tested": _judge(runs, plan, groups, strength),
            **_near_identical(place, bundles, data.ids, thumbnails),
        }
    )
    write_json(folder / RESULT, report)
    _write_manifests(bundles, report, reporter)
    return report


def _known(file: Path, plan: Plan) -> Certified:
    """What was found when the plan was carried out; raises MessError for another's, or altered."""
    known = read_record(file, Certified, _AGAIN)
    require_unaltered(known, file, _AGAIN)
    if known["plan"] != plan.digest:
        raise MessError(f"{file} is of another plan than the one beside it. {_AGAIN}")
    return known


def _seen(
    data: SegmentationData, thumbnails: list[bytes]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The images with their masks as they are run; their thumbnails are appended."""
    for index in range(len(data)):
        thumbnails.append(data.thumbnail(index).tobytes())
        yield data.sized(index)


def _near_identical(
    place: Run, bundles: Sequence[Bundle], ids: Sequence[str], thumbnails: Sequence[bytes]
) -> dict[str, NearIdentical | None]:
    """Images too much alike for what is said of new ones, as a search's certificate tells it."""
    taken = place.config.data
    seen = Thumbnails.of(taken, ids, thumbnails)
    searched = [
        among_searched(seen, thumbnails_of(place.open_cache(name), taken))
        for name in _searched_caches(bundles)
    ]
    known = [found for found in searched if found is not None]
    return {
        "near_identical": in_other_groups(seen, groups_of(taken, ids)),
        "near_searched": max(known, key=lambda found: found["images"], default=None),
    }


def _searched_caches(bundles: Sequence[Bundle]) -> set[str]:
    return {bundle.facts["source"].get("name", CALIBRATION) for bundle in bundles}


def _require_masks(bundle: Bundle) -> None:
    """Raise MessError for a bundle that was found on images without masks.

    Its limits were against the final exit. With masks the same pictures have other fingerprints, so
    that nobody could tell whether they chose it.
    """
    labels = bundle.facts["source"].get("labels", MASKS)
    if labels != MASKS:
        raise MessError(
            f"{bundle.path} was searched against the {labels} exit, on images without masks, and "
            "images with masks measure something else. Certify its search: add --confidence, with "
            "--certify and a cache of other such images where there is one, and export that."
        )


def _searched_limits(place: Run, bundle: Bundle) -> dict[str, float]:
    """Limits on accuracy of the search that found the bundle; raises MessError without any."""
    search_id, asked = bundle.facts["source"]["search"], dict[str, Any]()
    if search_id in place.searches():
        asked = place.result(search_id)["constraints"]
    found = {name: asked[name] for name in ("max_error", "min_miou") if asked.get(name) is not None}
    if not found:
        raise MessError(
            f"the search of {bundle.path} tells no limit on accuracy; give --max-error, such as "
            "0.01, or --min-miou."
        )
    return found


def _require_others(
    place: Run,
    bundles: Sequence[Bundle],
    plan: Plan,
    data: SegmentationData,
    reporter: Reporter,
) -> None:
    """Raise DataError for images that chose what they would certify, or that it was trained on."""
    chose = {"trained on": training_images(place, reporter)}
    for bundle in bundles:
        source = bundle.facts["source"]
        cache = place.open_cache(source.get("name", CALIBRATION))
        if source["search"] and cache.manifest["data"] != source["data"]:
            raise CacheError(
                f"{bundle.path} was searched on other images than {cache.store.directory} holds "
                f"now, so nobody can tell which chose it. Run {place.command('search')} and "
                f"{place.command('export')} again."
            )
        chose[f"searched for {bundle.path}"] = set(cache.image_fingerprints.values())
        if name := _certifying_cache(place, bundle):
            judged = place.open_cache(name).image_fingerprints.values()
            chose[f"used to choose what was certified of {bundle.path}"] = set(judged)
    for how, images in chose.items():
        both = [image_id for image_id, print_ in plan.images.items() if print_ in images]
        if both:
            raise DataError(
                f"{len(both)} of the {len(data)} images of {data.where} were {how}, such as "
                f"{both[0]!r}, and certify nothing of it. Name others with --split or --data."
            )


def _certifying_cache(place: Run, bundle: Bundle) -> str | None:
    """The cache on which the bundle's search chose its margin, where it was asked to certify."""
    search_id = bundle.facts["source"]["search"]
    if search_id not in place.searches():
        return None
    return place.result(search_id).get("certificate", {}).get("cache")


def _strength(
    place: Run,
    bundles: Sequence[Bundle],
    groups: Groups,
    image_ids: Sequence[str],
    reporter: Reporter,
) -> Strength:
    """What so many groups are worth; raises DataError for too few."""
    strength, taken = groups.strength(), place.config.data
    # Joined groups go by the name of one of them, and any of them may have been searched.
    fresh = groups_of(taken, image_ids)
    for name in _searched_caches(bundles):
        searched = cache_groups(place, name)
        if told := shared_groups(taken.groups, fresh, searched):
            reporter.message(told)
            strength = "weak"
    return strength


def _judge(
    runs: Sequence[BundleRun], plan: Plan, groups: Groups, strength: Strength
) -> list[dict[str, Any]]:
    """The certificate of each bundle up to the first that fails.

    The last run is that of the network run to its end.
    """
    *ours, whole = runs
    claims = [
        Claim(plan.limits["max_error"], against_final=True) if name == "max_error"
        else Claim(-plan.limits["min_miou"], against_final=False)
        for name in plan.limits
    ]  # fmt: skip

    def ran(index: int, images: NDArray[np.intp]) -> Ran:
        del images  # all of them: nothing is left out
        return Ran((counts_of_run(ours[index]),), np.array(ours[index].macs_I))

    judged = outcomes_on(range(len(ours)), ran, counts_of_run(whole), groups, claims)
    last = narrowest(judged, claims, plan.confidence)
    rare = rare_names(np.stack(whole.label), groups, whole.bundle.facts["classes"])
    # What comes after the first that fails was not tested, whatever it would have shown.
    tested = judged[: 1 if last is None else last + 2]
    return [
        {
            "bundle": str(run.bundle.path),
            "method": RUN_FOR_REAL,
            "plan": plan.digest,
            "confidence": plan.confidence,
            "strength": "weak" if any(figure.is_skewed for figure in each.figures) else strength,
            "holds": each.holds(claims, plan.confidence),
            "limits": [claim.to_json() for claim in claims],
            "bounds": each.bounds(claims, plan.confidence),
            "metric": MACS,
            "error": each.error.to_json(plan.confidence),
            "miou": each.miou.to_json(plan.confidence),
            "least_miou": each.miou.lower(plan.confidence),
            "cost": each.cost.to_json(plan.confidence),
            "whole_cost": whole.macs,
            "exit_rates": exit_rates_of(run),
            "images": groups.images,
            "groups": len(groups),
            "rare_classes": rare,
        }
        for run, each in zip(ours, tested, strict=False)
    ]


def _write_manifests(
    bundles: Sequence[Bundle], report: Mapping[str, Any], reporter: Reporter
) -> None:
    """What was found of a bundle goes where it goes, also that it does not hold.

    Raises BundleError where another bundle lies there by now.
    """
    for bundle, told in zip(bundles, report["tested"], strict=False):
        if read_manifest(bundle.path)[DIGEST] != bundle.digest:
            raise BundleError(
                f"{bundle.path} was exported again while it was certified. What was found of the "
                "one before is in RUN/certificates; certify the new one, too."
            )
        certificate = {name: value for name, value in told.items() if name != "bundle"}
        certificate["confidence_together"] = report["confidence_together"]
        before = dict(bundle.manifest)
        signature, whole = before.pop(SIGNATURE, None), sealed(before, certificate)
        # What says the same keeps its signature.
        if whole == before:
            continue
        write_json(bundle.path / MANIFEST, whole)
        if signature is not None:
            reporter.message(f"{bundle.path} was signed without this certificate: sign it again.")
