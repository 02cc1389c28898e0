"""What was planned to be certified, before any image was run, and what the images were used for.

A certificate holds with its confidence if what is tested was settled before its images were looked
at. So the plan is written first, with a hash over all of it. Every further plan on the same images
is another chance for one of them to hold by luck: together they hold less often, and plans are
kept so that this can be told. No torch.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

from mess.common.files import write_json
from mess.common.records import digest_of, read_record
from mess.errors import DataError
from mess.runs.run import Run
from mess.search.guarantees.confidence import LEAST_CONFIDENCE

PLAN, RESULT = "plan.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tested, in which order, and on which images.

    tested: digests of the bundles, the safest first, or of the search (`search_digest`).
    limits: by name, such as max_error.
    split, root: of the data set; root None is the run's own, split None pictures without masks.
    images: fingerprints by id; groups: the name of each image's group.
    """

    tested: Sequence[str]
    limits: Mapping[str, float]
    confidence: float
    split: str | None
    root: str | None
    images: Mapping[str, str]
    groups: Sequence[str]

    @property
    def digest(self) -> str:
        """sha256 (hexadecimal) over all of it."""
        # In the order of the images, which sorted keys would lose: their groups are listed so.
        content = asdict(self) | {"images": list(self.images.items())}
        return digest_of(content)

    def write(self, place: Run) -> Path:
        """Its folder in the run, in which it is written unless it is there already."""
        folder = _folder(place) / self.digest[:16]
        if not (folder / PLAN).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / PLAN, {"digest": self.digest, **asdict(self)})
        return folder


class _Kept(TypedDict):
    """A plan as it is written."""

    digest: str
    tested: list[str]
    limits: dict[str, float]
    confidence: float
    split: str | None
    root: str | None
    images: dict[str, str]
    groups: list[str]


def _read(file: Path, again: str) -> Plan:
    """A plan that was written before; raises DataError where it was altered since."""
    kept = read_record(file, _Kept, again, DataError)
    plan = Plan(**{field.name: kept[field.name] for field in fields(Plan)})
    if plan.digest != kept["digest"]:
        raise DataError(f"{file} was altered after it was written. {again}")
    return plan


def _folder(place: Run) -> Path:
    return place.path / "certificates"


@contextmanager
def settling(place: Run) -> Iterator[None]:
    """Keep other processes from writing a plan meanwhile.

    Two plans that read what the images were used for before either is written would both promise
    what only one can.
    """
    with (place.path / ".certificates.lock").open("w") as file:
        # Held for a moment only, so that whoever comes second waits.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def confidence_together(place: Run, plan: Plan) -> float:
    """With which probability this plan's certificate holds and all others do on its images.

    Raises DataError where nothing would be left to say. Whoever writes the plan then holds
    `settling` around both.
    """
    left, uses = confidence_left(place, plan)
    # A sum of tenths is no half to the last digit.
    if left <= LEAST_CONFIDENCE + 1e-9:
        raise DataError(
            f"these images are used up: with this one {uses} certificates rest on some of them, "
            f"and all hold together only with probability {left:.2f}. Certify on images that "
            "nothing was tested on."
        )
    return left


def confidence_left(place: Run, plan: Plan) -> tuple[float, int]:
    """The same without raising, and how many certificates rest on the plan's images.

    Each may fail with what its confidence leaves, and together at most with the sum (Bonferroni).
    A plan counts from when it was written: whether it was carried out cannot be told.
    """
    again = f"Restore it, or certify on other images: what {place.path} was used for must be known."
    images, failing, uses = set(plan.images.values()), 1 - plan.confidence, 1
    for file in _folder(place).glob(f"*/{PLAN}"):
        earlier = _read(file, again)
        if earlier.digest != plan.digest and not images.isdisjoint(earlier.images.values()):
            failing += 1 - earlier.confidence
            uses += 1
    return max(0.0, 1 - failing), uses


def search_digest(asked: Mapping[str, Any], depends: Mapping[str, Any], seed: int) -> str:
    """sha256 (hexadecimal) over what a search that certifies is asked, and all it hangs on.

    depends: `mess.runs.fronts.dependencies`; seed: of folds, halves and orders.
    """
    return digest_of({"asked": dict(asked), "depends": dict(depends), "seed": seed})
