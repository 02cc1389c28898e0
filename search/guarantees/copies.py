"""Copies of one image, which tell no more of new images than one of them.

Copies in several groups would make all figures look certain: where all images are alike nothing
varies, the standard error is zero, and anything would be certified. So groups that hold copies of
one image are one group, whatever they are called. What a copy is the tables tell here; files tell
it too (`mess.runs.groups.distinct_groups`), and neither finds all that the other does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

from mess.errors import DataError
from mess.search.guarantees.groups import LEAST, Groups
from mess.search.problem.tables import Tables


def without_copies(tables: Tables, groups: Groups) -> Groups:
    """The groups of the tables' images, those joined that hold images which all exits answer alike.

    To the pixel and to the last digit of every signal: other images do not do that. But where all
    of an image is one class and every exit says so, nothing in the tables is its own. Raises
    DataError where too few groups are left.
    """
    final = tables.final
    brief_IX = np.concatenate(
        [tables.label, tables.intersection[final], tables.predicted[final]], axis=1
    )
    # All that an image has is only looked at where this much is equal: mostly it never is.
    _, kind, count = np.unique(brief_IX, axis=0, return_inverse=True, return_counts=True)
    content: list[Hashable] = list(range(tables.images))
    for image in np.flatnonzero(count[kind.ravel()] > 1):
        if _is_plain(tables, image):
            continue
        digest = hashlib.sha256(brief_IX[image].tobytes())
        for part_EIX in (tables.intersection, tables.predicted, tables.signals):
            digest.update(np.ascontiguousarray(part_EIX[:, image]).tobytes())
        if tables.pairs is not None:
            digest.update(np.ascontiguousarray(tables.pairs[:, :, image]).tobytes())
        content[image] = digest.digest()
    return copies_joined(groups, content)


def _is_plain(tables: Tables, image: np.intp) -> bool:
    """Whether all of an image is one class, and every exit says so."""
    one_class = bool(np.count_nonzero(tables.label[image]) <= 1)
    return one_class and np.array_equal(tables.predicted[:, image], tables.intersection[:, image])


def copies_joined(groups: Groups, content: Sequence[Hashable]) -> Groups:
    """The groups with those joined that hold images of equal `content`, one for each image.

    Raises DataError where too few are left for any promise.
    """
    first: dict[Hashable, int] = {}
    group_of_group = np.arange(len(groups))
    for image, what in enumerate(content):
        mine, theirs = group_of_group[groups.of_image[[image, first.setdefault(what, image)]]]
        group_of_group[group_of_group == mine] = theirs
    copies = len(content) - len(first)
    if not copies:
        return groups
    found = Groups.of([groups.names[group] for group in group_of_group[groups.of_image]])
    if len(found) < LEAST <= len(groups):
        alike = "are all alike" if len(first) == 1 else f"are {len(first)} and their copies"
        raise DataError(
            f"the {groups.images} images {alike}: every exit answers copies alike, so they say "
            f"nothing of other images. Groups that share one count as one, which leaves "
            f"{len(found)}, and at least {LEAST} are needed. Memoise other images."
        )
    return found
