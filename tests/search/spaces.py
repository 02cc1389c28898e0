"""Every configuration of a setting, by plain loops: what searches are held against.

A new setting has a line in `SPACES`; the tests of all settings then hold it to its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import pairwise, product

from mess.search.problem.definition import Choice, Configuration
from mess.search.problem.request import Request
from mess.search.problem.tables import Tables


def between(values: Iterable[float]) -> list[float]:
    """Every threshold that tells some of the values apart."""
    return [(a + b) / 2 for a, b in pairwise(sorted(set(values)))]


def some(values: list[float], size: int) -> list[float]:
    if len(values) <= size:
        return values
    return [values[int(Fraction(2 * i + 1, 2 * size) * len(values))] for i in range(size)]


def chains(tables: Tables, longest: int) -> Iterator[tuple[int, ...]]:
    """Every choice of at most one exit a point, in order of depth."""
    for points in product(
        *(
            [None, *(e for e in range(tables.exits) if tables.point[e] == p)]
            for p in range(1, tables.points + 1)
        )
    ):
        chain = tuple(e for e in points if e is not None)
        if 0 < len(chain) <= longest:
            yield chain


def _input_dependent(tables: Tables, request: Request) -> Iterator[Configuration]:
    for *early, last in chains(tables, request.max_exits):
        # As many thresholds an exit as make about thresholds ** 2 combinations.
        size = max(1, round(request.thresholds ** (2 / max(len(early), 1))))
        options = [
            [
                Choice(e, s, t)
                for s in range(len(tables.signal_names))
                for values in [between(tables.signals[e, :, s].tolist())]
                for t in (values if len(early) == 1 else some(values, size))
            ]
            for e in early
        ]
        yield from ((*choices, Choice(last)) for choices in product(*options))


def _anytime(tables: Tables, request: Request) -> Iterator[Configuration]:
    for early in [(), *chains(tables, request.max_exits - 1)]:
        if not early or tables.point[early[-1]] < tables.points:
            yield (*(Choice(e) for e in early), Choice(tables.final))


def _budgeted(tables: Tables, _request: Request) -> Iterator[Configuration]:
    yield from ((Choice(e),) for e in range(tables.exits))


def _final_only(tables: Tables, _request: Request) -> Iterator[Configuration]:
    yield from ((Choice(e),) for e in range(tables.exits) if tables.point[e] == tables.points)


SPACES: dict[str, Callable[[Tables, Request], Iterator[Configuration]]] = {
    "input-dependent": _input_dependent,
    "anytime": _anytime,
    "budgeted": _budgeted,
    "final-only": _final_only,
}


def space_of(tables: Tables, request: Request) -> list[Configuration]:
    """Every configuration in the order in which ties are decided."""
    return sorted(SPACES[request.setting](tables, request), key=tie)


def tie(configuration: Configuration) -> tuple[int, list[tuple[int, int, float]]]:
    """Fewer exits first, then by exit, signal and threshold of each in turn."""
    return len(configuration), [
        (c.exit, -1 if c.signal is None else c.signal, c.threshold or 0.0) for c in configuration
    ]
