"""Lost pixels: a promise that holds for every number of images, however few.

A labelled pixel is *lost* where the final exit is right and the answer wrong; an image loses the
share of its labelled pixels that are. That is no error of mIoU: pixels that the answer alone gets
right make up for none, and large classes count for more than rare ones. But it is a mean over
images of numbers in [0, 1], of which `bounded_mean` has a bound without any normal limit.

Such a bound is of one configuration, settled before the images are looked at. Cross-fitting judges
a procedure, each fold's pick on its own, so it has none: what certifies here are images that no
search saw, another cache's or half of the searched one's. The search proposes configurations in a
fixed order from the safest on, and they are tested in it, each at the full level, up to the first
that fails (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021).

Where images are in groups, groups are what is drawn: a group loses the mean of what its images do,
and what is promised is the mean over groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.errors import DataError
from mess.search.exact.cover import collect
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.guarantees.bounded_mean import (
    betting_bound,
    hoeffding_bentkus_bound,
    losses_needed,
)
from mess.search.guarantees.certify import (
    Certificate,
    few_offers,
    final_counts,
    rare_in,
    require_same_parts,
    strength_of,
    times_needed,
)
from mess.search.guarantees.claims import Claim, Picked, claims_of, run
from mess.search.guarantees.confidence import require_confidence, require_max_lost
from mess.search.guarantees.cross_fit import Outcome, outcomes_on
from mess.search.guarantees.groups import LEAST, Groups
from mess.search.guarantees.methods import FRESH, SPLIT
from mess.search.guarantees.picking import (
    Settled,
    margins_of,
    picks,
    resolution_of,
    settle,
    whole_network,
)
from mess.search.problem.definition import Configuration
from mess.search.problem.goal import Goal
from mess.search.problem.request import ACCURACY
from mess.search.problem.tables import Tables

_LEVELS = 40
"""Shares of the limit that proposals lose at most on the searched images, besides nothing."""

_HALVES_STREAM, _ORDER_STREAM = (0x68616C66,), (0x6F72646572,)
"""So that no other draw of the same seed has to do with these."""


@dataclass(frozen=True, kw_only=True)
class LostCertificate:
    """What is promised of new images' lost pixels, and why.

    certificate: answer, method, claims on accuracy if there are any, and what images tell besides.
        Where no accuracy is claimed its margin is a share of lost pixels.
    limit, bound: of the mean share of lost pixels; share: that of the images that certify.
    hoeffding_bentkus: another bound, which knows the mean alone; a check, nothing rests on it.
    uncertified: the share that the answer without a margin loses on the images that certify.
    searched: images that were.
    """

    certificate: Certificate
    limit: float
    bound: float
    share: float
    hoeffding_bentkus: float
    uncertified: float
    searched: int

    def to_result(self, classes: Sequence[str]) -> dict[str, Any]:
        """As result.json and a bundle's manifest hold it, with the names of the classes."""
        told = self.certificate.to_result(classes)
        return told | {
            "limits": [*told["limits"], {"max_lost": self.limit, "checkpoint": None}],
            "bounds": [*told["bounds"], self.bound],
            "lost": {
                "value": self.share,
                "hoeffding_bentkus": self.hoeffding_bentkus,
                "uncertified": self.uncertified,
            },
            "searched": self.searched,
        }


class _Tested(NamedTuple):
    """What a proposal does on the images that certify; of each group the share it loses."""

    picked: Picked
    outcome: Outcome
    shares_G: NDArray[np.float64]
    bound: float


class _Promise(NamedTuple):
    """What is to hold of new images: claims on accuracy, if there are any, and lost pixels."""

    claims: tuple[Claim, ...]
    limit: float
    confidence: float

    def holds(self, tested: _Tested) -> bool:
        """Whether all of it does, with the confidence."""
        claimed = tested.outcome.holds(self.claims, self.confidence)
        return tested.bound <= self.limit and claimed


def halves(groups: Groups, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Images to search and images that certify, by index; half of the groups each, by lot.

    Raises DataError where half of them are too few to promise anything.
    """
    if len(groups) < 2 * LEAST:
        raise DataError(
            f"{groups.images} images in {len(groups)} groups are too few to search half of them "
            f"and certify on the others: at least {2 * LEAST} groups are needed. Memoise images of "
            "more groups, or name the cache of other ones with --certify"
        )
    # Not as folds are divided, by size: what certifies has to be drawn as all groups are.
    order = np.random.default_rng([seed % 2**64, *_HALVES_STREAM]).permutation(len(groups))
    certifies_I = np.isin(groups.of_image, order[len(groups) // 2 :])
    return np.flatnonzero(~certifies_I), np.flatnonzero(certifies_I)


def lost_shares(tables: Tables, exit_I: NDArray[np.integer], groups: Groups) -> NDArray[np.float64]:
    """What each group loses: the mean share of its images that have labelled pixels.

    exit_I: answering exit of each image. Shape (G,) but for groups without a labelled pixel.
    Raises ValueError for tables that do not have lost pixels.
    """
    if tables.lost is None:
        raise ValueError("the tables have no lost pixels")
    label_I = tables.label.sum(axis=1)
    share_I = tables.lost[exit_I, np.arange(tables.images)] / np.maximum(label_I, 1)
    labelled_G = groups.sums(label_I > 0)
    return groups.sums(share_I)[labelled_G > 0] / labelled_G[labelled_G > 0]


def certify_lost(
    searched: Goal,
    there: Goal,
    groups: Groups,
    limit: float,
    confidence: float,
    seed: int,
    *,
    method: str = FRESH,
    workers: Workers = ALL_CORES,
) -> LostCertificate:
    """Certify what a search of some images proposes on others, `groups` being theirs.

    searched, there: the same request on either. `limit` is of lost pixels; limits of the request on
    accuracy are certified besides, by their own bound.

    No probability is shared between the two. What is rejected is that a configuration breaks any
    limit; if it breaks one, that limit's own test has to fail by chance for it to pass, which is no
    likelier than 1 - confidence (an intersection-union test).
    """
    require_confidence(confidence)
    require_max_lost(limit)
    require_same_parts(searched.tables, there.tables)
    groups.strength()  # refuses too few before anything is searched
    promise = _Promise(claims_of(searched), limit, confidence)
    margins, chosen = _proposals(searched, limit, workers)

    def judge(picked: Picked) -> _Tested:
        return _tests([picked], there, groups, promise, seed)[0]

    tests = _tests(chosen, there, groups, promise, seed)
    settled = settle(searched, margins, chosen, tests, _last_passed(tests, promise), judge)
    at, count = settled.judged, searched.tables.images
    total = groups.images + (count if method == SPLIT else 0)
    # The whole network loses nothing to itself, whatever the images.
    other = 0.0 if settled.margin is None else hoeffding_bentkus_bound(at.shares_G, confidence)
    return LostCertificate(
        certificate=_certificate(method, there, groups, promise, tests, settled, total),
        limit=limit,
        bound=at.bound,
        share=float(at.shares_G.mean()),
        hoeffding_bentkus=other,
        uncertified=float(tests[-1].shares_G.mean()),
        searched=count,
    )


def _certificate(
    method: str,
    there: Goal,
    groups: Groups,
    promise: _Promise,
    tests: Sequence[_Tested],
    settled: Settled[_Tested],
    total: int,
) -> Certificate:
    """All but what is told of lost pixels; `total` as in `_images_needed`."""
    at = settled.judged
    return Certificate(
        method=method,
        confidence=promise.confidence,
        claims=promise.claims,
        picked=settled.picked,
        margin=settled.margin,
        tested=at.outcome,
        uncertified=tests[-1].outcome,
        holds=settled.passed and at.outcome.holds(promise.claims, promise.confidence),
        images=groups.images,
        groups=len(groups),
        # Of the claims alone: few groups make the bound of lost pixels wide, not wrong.
        strength=strength_of(groups, at.outcome) if promise.claims else "full",
        folds=None,
        repeats=None,
        images_needed=_images_needed(tests, promise, at, total),
        rare=rare_in(there.tables, groups),
        metric=there.front_metric,
        whole_cost=there.baseline.costs[there.front_metric],
    )


def _proposals(
    goal: Goal, limit: float, workers: Workers
) -> tuple[Sequence[float], Sequence[Picked]]:
    """Margins and what is picked at each, the widest first.

    Where the request has an accuracy to keep these are the certificate's own. Where it has none,
    points of the front: the cheapest that loses no more than the limit less the margin.
    """
    request = goal.request
    if request.target == ACCURACY or (request.max_error, request.min_miou) != (None, None):
        margins = margins_of(request)
        return margins, picks(goal, margins, workers)
    front = [
        point.payload
        for point in collect(goal, resolution_of(request), workers)
        if goal.affordable(goal.evaluate(point.payload).totals)
    ]
    shares = [_searched_share(goal, configuration) for configuration in front]
    margins = tuple(limit * n / _LEVELS for n in range(_LEVELS, -1, -1))
    safest = whole_network(goal)
    if front and not goal.affordable(goal.evaluate(safest.configuration).totals):
        safest = Picked.of(goal, front[int(np.argmin(shares))])
    chosen = []
    for margin in margins:
        # The front comes cheapest first.
        within = (c for c, share in zip(front, shares, strict=True) if share <= limit - margin)
        found = next(within, None)
        chosen.append(safest if found is None else Picked.of(goal, found))
    return margins, chosen


def _searched_share(goal: Goal, configuration: Configuration) -> float:
    everything = Groups.alone(goal.tables.images)
    return float(lost_shares(goal.tables, _answering(goal, configuration), everything).mean())


def _answering(goal: Goal, configuration: Configuration) -> NDArray[np.intp]:
    """The exit that answers each image."""
    exits = np.array([choice.exit for choice in configuration])
    return exits[goal.evaluate(configuration).answer]


def _tests(
    chosen: Sequence[Picked],
    there: Goal,
    groups: Groups,
    promise: _Promise,
    seed: int,
) -> list[_Tested]:
    final, ran = final_counts(there), partial(run, there)
    outcomes = outcomes_on(chosen, ran, final, groups, promise.claims)
    found: dict[Picked, _Tested] = {}
    for picked, outcome in zip(chosen, outcomes, strict=True):
        if picked not in found:
            shares_G = lost_shares(there.tables, _answering(there, picked.configuration), groups)
            # Bets depend on what came before, and ids often on what is seen: frames of a drive. Of
            # every proposal the same order.
            rng = np.random.default_rng([seed % 2**64, *_ORDER_STREAM])
            order = rng.permutation(len(shares_G))
            shares_G = shares_G[order]
            # The whole network loses nothing to itself, whatever the images.
            whole = picked == whole_network(there)
            bound = 0.0 if whole else betting_bound(shares_G, promise.confidence)
            found[picked] = _Tested(picked, outcome, shares_G, bound)
    return [found[picked] for picked in chosen]


def _last_passed(tests: Sequence[_Tested], promise: _Promise) -> int | None:
    """The last in the order before the first that fails; None where already the first does."""
    passed = None
    for index, each in enumerate(tests):
        if not promise.holds(each):
            break
        passed = index
    return passed


def _images_needed(
    tests: Sequence[_Tested], promise: _Promise, answer: _Tested, total: int
) -> tuple[tuple[float, int], ...]:
    """Cost and about how many images in all would certify it, of what is cheaper than the answer.

    total: images there are, those that were searched included where they are of the same cache.
    """
    found: dict[float, int] = {}
    times, (claims, limit, confidence) = 1.0, promise
    for each in {test.picked: test for test in tests}.values():
        needed = 0.0 if each.bound <= limit else losses_needed(each.shares_G, limit, confidence)
        claimed = times_needed(each.outcome, claims, confidence)
        # All that come before have to pass, too.
        times = max(times, needed / len(each.shares_G), claimed)
        cost = each.outcome.cost.value
        if cost < answer.outcome.cost.value and 1 < times < np.inf:
            images = int(np.ceil(times * total))
            found[cost] = min(images, found.get(cost, images))
    return few_offers(found)
