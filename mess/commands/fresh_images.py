"""Images that certify what others proposed. No torch."""

from __future__ import annotations

from pathlib import Path

from mess.commands.search_options import SearchOptions
from mess.common.file_hashes import FileHashes
from mess.common.progress import Reporter
from mess.errors import DataError
from mess.runs.freshness import require_current_data
from mess.runs.groups import groups_of, shared_groups
from mess.runs.policies import policy_tables
from mess.runs.run import Run
from mess.runs.sources import ImageSource
from mess.search.guarantees.groups import Groups
from mess.search.problem.tables import Tables

TRAINED_ON = ("train", "holdout")
"""Splits that training reads."""


_MANY = 1000
"""Images that take seconds to hash; a hundred thousand take minutes."""


def cache_groups(place: Run, cache: str) -> Groups:
    """The groups of a cache's images as the run names them, whether or not they hold copies."""
    return groups_of(place.config.data, list(place.open_cache(cache).image_fingerprints))


def fresh_tables(place: Run, options: SearchOptions, reporter: Reporter) -> Tables:
    """Those of the cache that certifies; DataError for images that were searched."""
    cache = place.open_cache(options.certify)
    require_current_data(place, cache, reporter)
    tables, _ = policy_tables(cache, options.policy, reporter)
    searched = place.open_cache(options.cache).image_fingerprints.values()
    both = set(searched) & set(cache.image_fingerprints.values())
    if both:
        raise DataError(
            f"{len(both)} images of the cache {options.certify!r} are among those that were "
            "searched, and images that chose an answer cannot certify it. Memoise others."
        )
    return tables


def require_untrained(place: Run, name: str, reporter: Reporter) -> None:
    """Raise DataError for a cache with images that the network was trained on.

    Also where they are copies, such as those of a split that lies in two places. Where training
    images are not at hand that is said. Pictures without masks have fingerprints of their own and
    are not compared.
    """
    cache = place.open_cache(name)
    source = cache.manifest["source"]
    own = place.config.data.root
    here = source["root"] is None or (
        own is not None and Path(source["root"]).resolve() == own.resolve()
    )
    if here and source["split"] in TRAINED_ON:
        raise DataError(
            f"the images of the cache {name!r} are of the split {source['split']!r}, on which the "
            "network was trained: they tell nothing of new ones, and certify nothing. Memoise "
            "others."
        )
    if source["split"] is None:
        return
    try:
        trained = training_images(place, reporter)
    except DataError as error:
        reporter.message(
            f"Whether images of the cache {name!r} were trained on, too, cannot be told: {error}"
        )
        return
    both = [id_ for id_, print_ in cache.image_fingerprints.items() if print_ in trained]
    if both:
        raise DataError(
            f"{len(both)} images of the cache {name!r}, such as {both[0]!r}, are equal to images "
            "that the network was trained on, masks too: they tell nothing of new ones, and "
            "certify nothing. Memoise others."
        )


def training_images(place: Run, reporter: Reporter) -> set[str]:
    """Fingerprints of all images that the network was trained on; changed files are read."""
    names = TRAINED_ON if place.config.data.holdout else TRAINED_ON[:1]
    hashes = FileHashes(place.path / "cache" / "training-hashes.json")
    splits = [ImageSource(name, None).open(place) for name in names]
    images = sum(map(len, splits))
    if images > _MANY and not hashes.record.is_file():
        reporter.message(
            f"Reading {images:,} training images once, to tell whether any is among those to "
            "certify on."
        )
    found = {
        print_
        for split in splits
        for print_ in split.image_fingerprints(hash_file=hashes.sha256).values()
    }
    hashes.save()
    return found


def has_searched_groups(place: Run, options: SearchOptions, reporter: Reporter) -> bool:
    """Whether fresh images are of groups that were searched, which is said and weakens them."""
    fresh, searched = (cache_groups(place, name) for name in (options.certify, options.cache))
    if told := shared_groups(place.config.data.groups, fresh, searched):
        reporter.message(told)
    return told is not None
