"""An answer that loses no more pixels on new images than was asked for. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mess.commands.fresh_images import has_searched_groups
from mess.commands.search_options import SearchOptions
from mess.common.progress import Reporter
from mess.errors import CacheError
from mess.runs.run import Run
from mess.search.answers.answer import Answer
from mess.search.guarantees.copies import without_copies
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.lost_pixels import LostCertificate, certify_lost, halves
from mess.search.guarantees.methods import CROSS, SPLIT
from mess.search.problem.costs import Cost, to_ticks
from mess.search.problem.goal import Goal
from mess.search.problem.tables import Tables


def require_lost_pixels(place: Run, options: SearchOptions) -> None:
    """Raise CacheError where lost pixels were asked for and not memoised, with what adds them."""
    if options.max_lost is None:
        return
    for name in {options.cache, options.cache if options.certify == CROSS else options.certify}:
        cache = place.open_cache(name)
        if cache.tables.lost is None:
            raise CacheError(
                f"the cache {name!r} was memoised before lost pixels were counted. Run "
                f"{cache.store.remedy} again: that adds them, with one pass over its images."
            )


def with_lost_pixels(
    place: Run,
    options: SearchOptions,
    answer: Answer,
    costs: Mapping[str, Cost],
    groups: Groups,
    fresh: Tables | None,
    confidence: float,
    reporter: Reporter,
) -> tuple[Answer, LostCertificate]:
    """The answer that certainly loses no more than `max_lost`, and the certificate of that.

    Without tables of `fresh` images half of those searched are left out of a search of their own,
    whose answers they certify. `groups` are those of the images that certify, or of both halves.
    """
    goal, seed, limit = answer.goal, place.config.seed, options.max_lost
    assert limit is not None
    certify = partial(certify_lost, limit=limit, confidence=confidence, seed=seed)
    if fresh is None:
        # Before it is divided: a copy must not certify what the other one chose.
        groups = without_copies(goal.tables, groups)
        searched, left_out = halves(groups, seed)
        theirs = groups.subset(left_out)
        found = certify(_on(goal, searched), _on(goal, left_out), theirs, method=SPLIT)
    else:
        there = Goal.of(fresh, to_ticks(fresh, costs), goal.request)
        found = certify(goal, there, without_copies(fresh, groups))
        if has_searched_groups(place, options, reporter):
            weak = replace(found.certificate, strength="weak")
            found = replace(found, certificate=weak)
    configuration = found.certificate.picked.configuration
    # It was proposed by other images than the answer's, so that nothing is proven of it here.
    certified = replace(
        answer,
        configuration=configuration,
        evaluation=goal.evaluate(configuration),
        gap=None,
    )
    return certified, found


def _on(goal: Goal, images: NDArray[np.intp]) -> Goal:
    """What is asked, of some images alone."""
    return Goal.of(goal.tables.subset(images), goal.ticks, goal.request)
