"""Fronts that leave out what hardly differs from what they have.

A front to a resolution has, for every configuration of at least the floor's mIoU, a point that
costs no more and lacks at most `miou`, or one that costs at most 1 + `cost` times as much and
lacks nothing. So a configuration need not be looked at if it does not clear every *hurdle*: of each
known point one at its own cost and an mIoU higher by `miou`, and one at its own mIoU and a cost
lower by the share.

Nor is a point q of such a front far behind: what costs less than q / (1 + `cost`) is more accurate
by at most `miou`, for it has a point here that costs no more than q, and points do not beat each
other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.search.problem.goal import MIOU_STEPS

Arrays = NDArray[np.int64]


class Resolution(NamedTuple):
    """How near to the front of the whole space another one is, and from which mIoU on.

    miou, floor: in steps; cost: a share.
    """

    miou: int = 0
    cost: float = 0.0
    floor: int = -1

    def above(self, floor: int) -> Resolution:
        """The same, where only what reaches `floor` steps of mIoU matters."""
        return self._replace(floor=floor)


EXACT = Resolution()
"""The front itself."""

FINE = Resolution(miou=MIOU_STEPS // 2000, cost=0.005)
"""Within 0.0005 mIoU or 0.5% of the cost."""


def hurdles(cost_F: Arrays, miou_F: Arrays, resolution: Resolution) -> tuple[Arrays, Arrays]:
    """What to clear, by rising cost and strictly rising mIoU, given the points of a front.

    A configuration matters only if it is at least as accurate as the dearest hurdle that costs no
    more. Without points there are none.
    """
    if resolution == EXACT or not len(cost_F):
        return cost_F, miou_F
    # Rounded up: a hurdle that comes too late rules out less.
    cheaper_F = np.ceil(cost_F / (1 + resolution.cost)).astype(np.int64)
    cost_H = np.concatenate([cost_F, cheaper_F])
    # The floor last: what reaches it is not ruled out by what does not.
    miou_H = np.maximum(np.concatenate([miou_F + resolution.miou, miou_F]), resolution.floor)
    # No configuration is cheaper than the cheapest, which hence is the first to clear.
    cost_H[len(cost_F)] = min(int(cost_F[0]), int(cheaper_F[0]))
    order = np.lexsort((-miou_H, cost_H))
    cost_H, miou_H = cost_H[order], np.maximum.accumulate(miou_H[order])
    rises = np.append(True, np.diff(miou_H) > 0)
    return cost_H[rises], miou_H[rises]
