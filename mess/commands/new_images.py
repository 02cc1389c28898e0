"""What an answer is worth on new images: a certificate, or what to expect. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from mess.commands.fresh_images import (
    cache_groups,
    fresh_tables,
    has_searched_groups,
    require_untrained,
)
from mess.commands.lost_pixels import with_lost_pixels
from mess.commands.search_options import SearchOptions
from mess.common.metrics import MASKS
from mess.common.progress import Reporter
from mess.errors import MessError
from mess.runs.fronts import dependencies
from mess.runs.groups import distinct_groups
from mess.runs.near_identical import among_searched, in_other_groups, thumbnails_of
from mess.runs.plans import Plan, confidence_left, search_digest, settling
from mess.runs.run import Run
from mess.search.answers.answer import Answer
from mess.search.exact.resolution import EXACT
from mess.search.guarantees.certify import (
    Certificate,
    certify_cross,
    certify_fresh,
    require_same_parts,
)
from mess.search.guarantees.confidence import EXPECTED
from mess.search.guarantees.copies import without_copies
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.lost_pixels import halves
from mess.search.guarantees.methods import CROSS
from mess.search.guarantees.picking import resolution_of
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.goal import Goal, miou_steps
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables


class Promised(NamedTuple):
    """An answer, and what result.json tells of new images besides."""

    answer: Answer
    told: dict[str, Any]


def require_same_labels(place: Run, options: SearchOptions) -> None:
    """Raise MessError where a cache is to certify what was counted against something else.

    Two instances can agree with the whole network alike and differ by masks, and the reverse.
    """
    if options.confidence is None or options.certify == CROSS:
        return
    caches = (options.cache, options.certify)
    searched, certifying = (place.open_cache(name).manifest["labels"] for name in caches)
    if searched != certifying:
        raise MessError(
            f"the cache {options.cache!r} is counted against {_named(searched)} and "
            f"{options.certify!r} against {_named(certifying)}: they measure different things, so "
            f"neither certifies the other. Certify with a cache of the kind that is searched, or "
            "leave --certify out."
        )


def _named(labels: str) -> str:
    return labels if labels == MASKS else f"the {labels} exit"


def is_fast(options: SearchOptions) -> bool:
    """Whether the whole exact front is no burden: with a confidence many are made."""
    return options.confidence is None or resolution_of(options.request(1.0)) == EXACT


def of_new_images(
    place: Run,
    options: SearchOptions,
    answer: Answer,
    costs: Mapping[str, Cost],
    reporter: Reporter,
    compared: int = 1,
) -> Promised:
    """Certify, or tell what to expect; neither where neither is asked for.

    By itself nothing is told: it takes several searches, and no answer should wait for them.
    compared: searches of which one will be taken. Each is told at the confidence at which all
        together hold with the one asked for (Bonferroni): the one that looks best does, too.
    """
    if options.confidence is None and not options.expect:
        return Promised(answer, {})
    cache = _judging(options)
    for name in {options.cache, cache}:
        require_untrained(place, name, reporter)
    groups = distinct_groups(place.config.data, place.open_cache(cache).image_fingerprints)
    near = _near_identical(place, options, reporter)
    together = EXPECTED if options.confidence is None else options.confidence
    confidence = 1 - (1 - together) / compared
    if compared > 1:
        near |= {"compared": compared, "confidence_together": together}
    if options.confidence is None:
        certificate = _cross(place, answer.goal, groups, confidence, reporter)
        return Promised(answer, {"expected": certificate.to_expected() | near})
    # Before anything is written down: images that cannot certify are refused, and not used.
    fresh = None if options.certify == CROSS else fresh_tables(place, options, reporter)
    if fresh is not None:
        require_same_parts(answer.goal.tables, fresh)
    judging = without_copies(answer.goal.tables if fresh is None else fresh, groups)
    if options.max_lost is not None and fresh is None:
        halves(judging, place.config.seed)
    else:
        judging.strength()
    spent = _spend(place, options, answer.goal, costs, groups, confidence)
    if options.max_lost is not None:
        answer, certificate = with_lost_pixels(
            place, options, answer, costs, groups, fresh, confidence, reporter
        )
    elif fresh is None:
        certificate = _cross(place, answer.goal, groups, confidence, reporter)
        answer = _within(answer, certificate)
    else:
        certificate = _fresh(
            place, options, answer.goal, costs, groups, fresh, confidence, reporter
        )
        answer = _within(answer, certificate)
    classes = place.open_cache(cache).manifest["classes"]
    told = {"cache": cache} | certificate.to_result(classes) | near | spent
    # What an answer's neighbours cost explains a search on its own images, not a certificate.
    return Promised(answer, {"certificate": told, "explanation": {}})


def _judging(options: SearchOptions) -> str:
    """The cache of the images that judge an answer."""
    return options.cache if options.certify == CROSS else options.certify


def _spend(
    place: Run,
    options: SearchOptions,
    goal: Goal,
    costs: Mapping[str, Cost],
    groups: Groups,
    confidence: float,
) -> dict[str, float]:
    """Write down what the images are used for, before they are looked at.

    Returns what the result tells of it: with which probability all that was certified on some of
    them holds. Cross-fitted certificates do not count: their images searched, too, and nobody takes
    them for fresh ones.
    """
    if options.certify == CROSS and options.max_lost is None:
        return {}
    cache, searched = place.open_cache(_judging(options)), place.open_cache(options.cache)
    # How an answer is found changes nothing that is tested.
    asked = {k: v for k, v in asdict(options).items() if k not in ("front", "fresh", "expect")}
    limits = {name: asked[name] for name in ("max_error", "min_miou", "max_lost")}
    source = cache.manifest["source"]
    # Other costs, signals or halves propose other instances, which are another use.
    decisive = {metric: costs[metric] for metric in goal.metrics}
    depends = dependencies(goal, decisive, searched.manifest, place.excluded_exits)
    plan = Plan(
        tested=[search_digest(asked, depends, place.config.seed)],
        limits={name: limit for name, limit in limits.items() if limit is not None},
        confidence=confidence,
        split=source["split"],
        root=source["root"],
        images=cache.image_fingerprints,
        groups=[groups.names[group] for group in groups.of_image],
    )
    with settling(place):
        left, _ = confidence_left(place, plan)
        plan.write(place)
    return {"confidence_on_images": left}


def _near_identical(place: Run, options: SearchOptions, reporter: Reporter) -> dict[str, Any]:
    """What the result tells of images that are too much alike for what is said of new ones."""
    seen = {
        name: thumbnails_of(place.open_cache(name), place.config.data)
        for name in (options.cache, _judging(options))
    }
    searched, groups = seen[options.cache], cache_groups(place, _judging(options))
    if options.certify == CROSS:
        told = {"near_identical": in_other_groups(searched, groups)}
    else:
        fresh = seen[options.certify]
        told = {
            "near_identical": in_other_groups(fresh, groups),
            "near_searched": among_searched(fresh, searched),
        }
    if None in told.values():
        remedies = " and ".join(
            dict.fromkeys(
                place.open_cache(name).store.remedy
                for name, thumbnails in seen.items()
                if thumbnails is None
            )
        )
        reporter.message(
            "Nearly identical images were not looked for: their thumbnails were not memoised yet. "
            f"{remedies} adds them."
        )
    return told


def _cross(
    place: Run, goal: Goal, groups: Groups, confidence: float, reporter: Reporter
) -> Certificate:
    with reporter.task("leaving images out", 1) as task:
        reached = 0.0

        def hear(share: float) -> None:
            nonlocal reached
            task.advance(share - reached)
            reached = share

        return certify_cross(goal, groups, confidence, place.config.seed, done=hear)


def _fresh(
    place: Run,
    options: SearchOptions,
    goal: Goal,
    costs: Mapping[str, Cost],
    groups: Groups,
    tables: Tables,
    confidence: float,
    reporter: Reporter,
) -> Certificate:
    """Certify on the tables of another cache, of images that no search saw."""
    certificate = certify_fresh(goal, tables, to_ticks(tables, costs), groups, confidence)
    if has_searched_groups(place, options, reporter):
        certificate = replace(certificate, strength="weak")
    return certificate


def _within(answer: Answer, certificate: Certificate) -> Answer:
    """The certified answer: the best that stays within the limits by the margin."""
    goal, margin = answer.goal, certificate.margin
    exact = margin is not None and resolution_of(goal.request) == EXACT
    if margin is not None and goal.request.target != ACCURACY and not goal.checkpoints:
        goal = replace(goal, miou_limit=goal.miou_limit + miou_steps(margin))
    configuration = certificate.picked.configuration
    evaluation = goal.evaluate(configuration)
    # Where nothing stays within the limits by the margin, what loses least is no best of them.
    exact = exact and miou_steps(evaluation.miou) >= goal.miou_limit
    return replace(
        answer,
        goal=goal,
        configuration=configuration,
        evaluation=evaluation,
        gap=answer.gap if exact else None,
    )
