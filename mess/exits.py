"""Candidate exits: architecture, identifier and the 56 variants of a point (MESS paper, §4.2).

May import: nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

FINAL = "final"
"""Identifier of the network's own head."""

# Without leading zeros, so that an architecture at a point has one identifier.
_EXIT_ID = re.compile(r"p([1-9]\d*)-crm([1-9]\d*)-b(0|[1-9]\d*)(-rdi)?-([a-z0-9]+)(-skip)?")


@dataclass(frozen=True, order=True)
class ExitArchitecture:
    """One architecture of Eq. 1: channel reduction, extra blocks, rapid dilation, head.

    `crm` divides the channels (1: no reduction), `blocks` counts extra 3×3 blocks, `rdi` doubles
    the dilation in each of them, `head` names an entry of HEADS in `mess.networks.backbones.heads`.
    With `skip` the head reads shallower features, too, where the network keeps some for its own
    decoder.
    """

    crm: int = 1
    blocks: int = 0
    rdi: bool = False
    head: str = "fcn"
    skip: bool = False

    def __post_init__(self) -> None:
        if self.crm < 1 or self.blocks < 0:
            raise ValueError(f"crm must be >= 1 and blocks >= 0, got {self.crm} and {self.blocks}")
        if self.rdi and self.blocks == 0:
            raise ValueError("rdi needs at least one block: without blocks it is the same network")

    def exit_id(self, point: int) -> str:
        """Identifier at exit point `point` (1-based), such as `p3-crm2-b1-rdi-fcn`."""
        rdi = "-rdi" if self.rdi else ""
        skip = "-skip" if self.skip else ""
        return f"p{point}-crm{self.crm}-b{self.blocks}{rdi}-{self.head}{skip}"


def parse_exit_id(exit_id: str) -> tuple[int, ExitArchitecture]:
    """Point and architecture of an identifier; the inverse of `ExitArchitecture.exit_id`."""
    match = _EXIT_ID.fullmatch(exit_id)
    if match is None:
        raise ValueError(f"{exit_id!r} is not an exit identifier like 'p3-crm2-b1-rdi-fcn'")
    point, crm, blocks, rdi, head, skip = match.groups()
    architecture = ExitArchitecture(int(crm), int(blocks), rdi is not None, head, skip is not None)
    return int(point), architecture


def architectures(
    crm: Iterable[int],
    blocks: Iterable[int],
    rdi: Iterable[bool],
    heads: Iterable[str],
    skips: Iterable[bool] = (False,),
) -> list[ExitArchitecture]:
    """The distinct architectures of Eq. 1; 56 for the paper's full options, not 64."""
    options = itertools.product(crm, blocks, rdi, heads, skips)
    # Without blocks there is nothing to dilate: such exits are there once, whatever `rdi` says.
    every = (ExitArchitecture(c, b, r and b > 0, h, s) for c, b, r, h, s in options)
    return list(dict.fromkeys(every))
