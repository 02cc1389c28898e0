"""An answer whose limits hold on new images, with a stated confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.errors import CacheError
from mess.search.exact.workers import ALL_CORES, Workers
from mess.search.guarantees.claims import Claim, Picked, claims_of, counts_of, run
from mess.search.guarantees.confidence import require_confidence
from mess.search.guarantees.copies import without_copies
from mess.search.guarantees.cross_fit import Outcome, cross_fit, narrowest, outcomes_on
from mess.search.guarantees.groups import Groups, Strength
from mess.search.guarantees.intervals import rare_classes
from mess.search.guarantees.methods import CROSS, FRESH
from mess.search.guarantees.picking import margins_of, picks, settle
from mess.search.guarantees.sampling_error import Counts
from mess.search.problem.costs import Ticks
from mess.search.problem.goal import Goal
from mess.search.problem.tables import Tables

FOLDS = 5
"""Each search then has four fifths of the images."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is promised of images drawn like these, and why.

    method: one of `mess.search.guarantees.methods`.
    picked: the answer; margin: by how much it stays within the limits on the images it was
        searched on, None for the whole network, which needs no test.
    tested: what answers at this margin do on images that did not choose them.
    uncertified: the same of the answer without a margin; uncertified_cost: what that costs.
    holds: whether every limit is certified. The whole network loses nothing, but may miss an mIoU.
    rare: classes, by index, that too few of the groups have to say anything about them.
    metric: of costs, the front's; whole_cost: of the network run to its end.
    images_needed: for answers at narrower margins about how many images would certify them.
    """

    method: str
    confidence: float
    claims: tuple[Claim, ...]
    picked: Picked
    margin: float | None
    tested: Outcome
    uncertified: Outcome
    holds: bool
    images: int
    groups: int
    strength: Strength
    folds: int | None
    repeats: int | None
    images_needed: tuple[tuple[float, int], ...]
    rare: tuple[int, ...]
    metric: str
    whole_cost: float

    def to_result(self, classes: Sequence[str]) -> dict[str, Any]:
        """As result.json and a bundle's manifest hold it, with the names of the classes."""
        error, cost = self.tested.error, self.tested.cost
        return {
            "method": self.method,
            "confidence": self.confidence,
            "strength": self.strength,
            "holds": self.holds,
            "limits": [claim.to_json() for claim in self.claims],
            "bounds": self.tested.bounds(self.claims, self.confidence),
            "least_miou": self.tested.miou.lower(self.confidence),
            "rare_classes": [classes[class_] for class_ in self.rare],
            "margin": self.margin,
            "metric": self.metric,
            "error": error.to_json(self.confidence),
            "miou": self.tested.miou.to_json(self.confidence),
            "cost": cost.to_json(self.confidence),
            "uncertified": {
                "error": self.uncertified.error.to_json(self.confidence),
                "cost": self.uncertified.cost.to_json(self.confidence),
            },
            "images": self.images,
            "groups": self.groups,
            "folds": self.folds,
            "repeats": self.repeats,
            "images_needed": [
                {"cost": cost, "images": images} for cost, images in self.images_needed
            ],
        }

    def to_expected(self) -> dict[str, Any]:
        """What result.json holds of an answer that nothing is promised of.

        saving_kept: share of its saving that the certificate would keep, in cost on new images.
        """
        whole = self.whole_cost - self.uncertified.cost.value
        kept = (self.whole_cost - self.tested.cost.value) / whole if whole > 0 else None
        return {
            "error": self.uncertified.error.to_json(self.confidence),
            "miou": self.uncertified.miou.to_json(self.confidence),
            "cost": self.uncertified.cost.to_json(self.confidence),
            "metric": self.metric,
            "confidence": self.confidence,
            "saving_kept": kept,
            "images": self.images,
            "groups": self.groups,
        }


def repeats_of(goal: Goal) -> int:
    """Divisions into folds: several where fronts are fast, to be rid of the luck of one."""
    return 5 if goal.request.max_exits <= 2 or not goal.setting.signals_decide else 1


def certify_cross(
    goal: Goal,
    groups: Groups,
    confidence: float,
    seed: int,
    workers: Workers = ALL_CORES,
    done: Callable[[float], None] = lambda _share: None,
) -> Certificate:
    """Certify from the searched images alone; see `mess.search.guarantees.cross_fit`.

    Raises DataError for too few groups, ConfigError for what is no confidence.
    """
    require_confidence(confidence)
    groups = without_copies(goal.tables, groups)
    groups.strength()  # refuses too few before anything is searched
    margins, claims, repeats = margins_of(goal.request), claims_of(goal), repeats_of(goal)
    folds = min(FOLDS, len(groups))
    # A seed sequence takes no negative numbers.
    rng = np.random.default_rng([seed % 2**64, *_FOLDS_STREAM])

    def pick(images: NDArray[np.intp]) -> list[Picked]:
        seen = Goal.of(goal.tables.subset(images), goal.ticks, goal.request)
        return picks(seen, margins, workers)

    tested = cross_fit(
        pick, partial(run, goal), final_counts(goal), groups, claims,
        folds=folds, repeats=repeats, rng=rng, done=done,
    )  # fmt: skip
    chosen = picks(goal, margins, workers)
    return _certificate(
        CROSS, goal, goal, groups, confidence, claims, margins, chosen, tested, folds,
        repeats,
    )  # fmt: skip


def certify_fresh(
    goal: Goal,
    fresh: Tables,
    ticks: Mapping[str, Ticks],
    groups: Groups,
    confidence: float,
    workers: Workers = ALL_CORES,
) -> Certificate:
    """Certify on the tables of images that no search saw, `groups` being theirs.

    ticks: the costs of the parts, for the same exits. Raises CacheError where the tables are of
    other exits or signals.
    """
    require_confidence(confidence)
    groups = without_copies(fresh, groups)
    groups.strength()  # as above
    require_same_parts(goal.tables, fresh)
    margins, claims = margins_of(goal.request), claims_of(goal)
    there = Goal.of(fresh, ticks, goal.request)
    chosen = picks(goal, margins, workers)
    tested = outcomes_on(chosen, partial(run, there), final_counts(there), groups, claims)
    return _certificate(
        FRESH, goal, there, groups, confidence, claims, margins, chosen, tested, None,
        None,
    )  # fmt: skip


def require_same_parts(searched: Tables, fresh: Tables) -> None:
    """Raise CacheError where what was picked on some tables cannot be run on others."""
    if (fresh.exit_ids, fresh.signal_names) != (searched.exit_ids, searched.signal_names):
        raise CacheError(
            "the fresh images were memoised with other exits or signals than the searched ones; "
            "run `mess memoise` for both"
        )


_FOLDS_STREAM = (0x666F6C64,)
"""So that no other draw of the same seed divides images as folds do."""


def _certificate(
    method: str,
    goal: Goal,
    there: Goal,
    groups: Groups,
    confidence: float,
    claims: tuple[Claim, ...],
    margins: Sequence[float],
    chosen: Sequence[Picked],
    tested: Sequence[Outcome],
    folds: int | None,
    repeats: int | None,
) -> Certificate:

    def judge(picked: Picked) -> Outcome:
        return outcomes_on([picked], partial(run, there), final_counts(there), groups, claims)[0]

    passed = narrowest(tested, claims, confidence)
    settled = settle(goal, margins, chosen, tested, passed, judge)
    at = settled.judged
    return Certificate(
        method=method,
        confidence=confidence,
        claims=claims,
        picked=settled.picked,
        margin=settled.margin,
        tested=at,
        uncertified=tested[-1],
        holds=settled.passed and at.holds(claims, confidence),
        images=groups.images,
        groups=len(groups),
        strength=strength_of(groups, at),
        folds=folds,
        repeats=repeats,
        rare=rare_in(there.tables, groups),
        metric=goal.front_metric,
        whole_cost=goal.baseline.costs[goal.front_metric],
        images_needed=_images_needed(tested, claims, confidence, groups, at.cost.value),
    )


def rare_in(tables: Tables, groups: Groups) -> tuple[int, ...]:
    """Classes, by index, that too few groups of the tables' images have."""
    return tuple(np.flatnonzero(rare_classes(tables.label, groups)).tolist())


def strength_of(groups: Groups, tested: Outcome) -> Strength:
    """Weak where the groups are few, or so much hangs on few of them that a bound is uncertain."""
    skewed = any(figure.is_skewed for figure in tested.figures or (tested.miou,))
    return "weak" if skewed else groups.strength()


def _images_needed(
    tested: Sequence[Outcome],
    claims: Sequence[Claim],
    confidence: float,
    groups: Groups,
    cost: float,
) -> tuple[tuple[float, int], ...]:
    """Cost and about how many images would certify it, of what is cheaper than `cost`.

    As if figures and deviations stayed what they are: then the standard error falls with the root
    of the number of images. What breaks a limit already has no such number.
    """
    found: dict[float, int] = {}
    for each in tested:
        times = times_needed(each, claims, confidence)
        if each.cost.value < cost and 1 < times < np.inf:
            images = int(np.ceil(times * groups.images))
            found[each.cost.value] = min(images, found.get(each.cost.value, images))
    return few_offers(found)


def times_needed(tested: Outcome, claims: Sequence[Claim], confidence: float) -> float:
    """How many times as many images would certify the claims, at least 1."""
    times = 1.0
    for claim, figure in zip(claims, tested.figures, strict=True):
        room = claim.limit - figure.value
        reach = figure.upper(confidence) - figure.value
        times = max(times, np.inf if room <= 0 else (reach / room) ** 2)
    return times


def few_offers(found: Mapping[float, int]) -> tuple[tuple[float, int], ...]:
    """Some of the costs that so many images would certify: cheaper ones for more images."""
    kept: list[tuple[float, int]] = []
    for saved, images in sorted(found.items(), key=lambda item: (item[1], item[0])):
        if not kept or saved < kept[-1][0]:
            kept.append((saved, images))
    return tuple(kept[:: max(1, len(kept) // 3)][:3])


def final_counts(goal: Goal) -> Counts:
    """Those of the network run to its end, of all images."""
    tables, images = goal.tables, np.arange(goal.tables.images)
    return counts_of(tables, np.full(len(images), tables.final), images)
