"""How much a search loses on new images, from the images that it searched (cross-fitting).

What a search picks looks better on its own images than on others, for it was picked for looking
good. So the images are divided into folds: for each, the search sees the others, and what it picks
there is run on the fold. The folds' counts together tell what the *whole procedure*, search
included, loses on new images (Chernozhukov et al., 2018). Each fold's search had fewer images than
the search of all, which if anything makes it worse.

A search is asked to stay within the limits by a *margin* of mIoU on the images that it sees. What
is promised is the limits, without the margin: it is widened until the bound on what new images show
is within them. Margins are tested in a fixed order, from the widest on, up to the first that fails:
so that none has to be paid for being one of many (fixed-sequence testing; Angelopoulos et al.,
Learn then Test, 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mess.search.guarantees.claims import Claim, Ran, counts_of_parts
from mess.search.guarantees.groups import Groups
from mess.search.guarantees.sampling_error import Counts, Estimate, mean_moves_G

P = TypeVar("P", bound=Hashable)

Pick = Callable[[NDArray[np.intp]], Sequence[P]]
"""What a search of the images of these indices picks at each margin, the widest first."""

Run = Callable[[P, NDArray[np.intp]], Ran]
"""What a pick does on the images of these indices."""


class Outcome(NamedTuple):
    """What a procedure does on images that it did not see.

    figures: of each claim. error: what the answers lose to the final exit's, whatever is claimed.
    cost: of an image.
    """

    figures: tuple[Estimate, ...]
    error: Estimate
    miou: Estimate
    cost: Estimate

    def holds(self, claims: Sequence[Claim], confidence: float) -> bool:
        """Whether every claim does, with this probability.

        Each is tested at the full level: that any is broken is found out no less often than that
        the broken one is (an intersection-union test).
        """
        return all(
            figure.upper(confidence) <= claim.limit
            for claim, figure in zip(claims, self.figures, strict=True)
        )

    def bounds(self, claims: Sequence[Claim], confidence: float) -> list[float]:
        """Of each claim, the error that it is below or the mIoU above, with this probability."""
        return [
            figure.upper(confidence) * (1 if claim.against_final else -1)
            for claim, figure in zip(claims, self.figures, strict=True)
        ]


def cross_fit(
    pick: Pick[P],
    run: Run[P],
    final: Counts,
    groups: Groups,
    claims: Sequence[Claim],
    *,
    folds: int,
    repeats: int,
    rng: np.random.Generator,
    done: Callable[[float], None] = lambda _share: None,
) -> list[Outcome]:
    """What is picked at each margin does on images that its search did not see.

    final: counts of the network run to its end, of all images.
    repeats: divisions into folds; figures are means over them, so that none rests on the luck of
        one division.
    done: hears the share that is done.
    """
    divisions: list[list[_Whole]] = []
    for repeat in range(repeats):
        fold_I = groups.folds(folds, rng)
        left_out = [np.flatnonzero(fold_I == fold) for fold in range(folds)]
        picked: list[Sequence[P]] = []
        for fold in range(folds):
            picked.append(pick(np.flatnonzero(fold_I != fold)))
            done((repeat * folds + fold + 1) / (repeats * folds))
        divisions.append(_wholes(picked, left_out, run, final, groups, claims))
    return [_mean(each) for each in zip(*divisions, strict=True)]


def _wholes(
    picked: Sequence[Sequence[P]],
    left_out: Sequence[NDArray[np.intp]],
    run: Run[P],
    final: Counts,
    groups: Groups,
    claims: Sequence[Claim],
) -> list[_Whole]:
    """Of every margin, what the folds' picks at it do on the images that were left out."""
    ran: dict[tuple[int, P], Ran] = {}
    # Neighbouring margins mostly pick the same.
    known: dict[tuple[P, ...], _Whole] = {}
    at_margins = list(zip(*picked, strict=True))
    for picks in at_margins:
        if picks not in known:
            for fold, pick in enumerate(picks):
                if (fold, pick) not in ran:
                    ran[fold, pick] = run(pick, left_out[fold])
            parts = [(left_out[fold], ran[fold, pick]) for fold, pick in enumerate(picks)]
            known[picks] = _Whole.of(parts, final, groups, claims)
    return [known[picks] for picks in at_margins]


def outcomes_on(
    picks: Sequence[P],
    run: Run[P],
    final: Counts,
    groups: Groups,
    claims: Sequence[Claim],
) -> list[Outcome]:
    """What is picked at each margin does on all images of other tables, which no search saw."""
    everything, ran = np.arange(groups.images), dict[P, Outcome]()
    for picked in picks:
        if picked not in ran:
            whole = _Whole.of([(everything, run(picked, everything))], final, groups, claims)
            ran[picked] = _mean([whole])
    return [ran[picked] for picked in picks]


def narrowest(tested: Sequence[Outcome], claims: Sequence[Claim], confidence: float) -> int | None:
    """The last margin, from the widest on, before the first whose claims do not hold.

    None where not even the widest margin's do.
    """
    certified = None
    for index, each in enumerate(tested):
        if not each.holds(claims, confidence):
            break
        certified = index
    return certified


class _Whole(NamedTuple):
    """Figures of all images in one division into folds, and by how much each group moves them."""

    values: tuple[float, ...]
    moves_G: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(
        cls,
        parts: Sequence[tuple[NDArray[np.intp], Ran]],
        final: Counts,
        groups: Groups,
        claims: Sequence[Claim],
    ) -> _Whole:
        """Of the claims, the error, the mIoU and the cost."""
        counted = [
            counts_of_parts([(images, ran.counts[kind]) for images, ran in parts], groups.images)
            for kind in range(len(parts[0][1].counts))
        ]
        values, moves_G = [], []
        for claim in (*claims, _ERROR, _MINUS_MIOU):
            answer = counted[claim.counts]
            values.append(claim.value(final, answer))
            moves_G.append(claim.moves_G(final, answer, groups))
        cost_I = np.empty(groups.images)
        for images, ran in parts:
            cost_I[images] = ran.cost_I
        values.append(float(cost_I.mean()))
        moves_G.append(mean_moves_G(cost_I, groups))
        return cls(tuple(values), tuple(moves_G))


_ERROR, _MINUS_MIOU = Claim(1.0, against_final=True), Claim(0.0, against_final=False)


def _mean(divisions: Sequence[_Whole]) -> Outcome:
    """The mean of each figure over the divisions, and its standard error."""
    estimates = [
        Estimate.of_moves(float(np.mean(values)), np.stack(moves))
        for values, moves in zip(
            zip(*(each.values for each in divisions), strict=True),
            zip(*(each.moves_G for each in divisions), strict=True),
            strict=True,
        )
    ]
    *figures, error, minus_miou, cost = estimates
    return Outcome(tuple(figures), error, minus_miou.negative(), cost)
