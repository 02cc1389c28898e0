"""Comparing the label maps of exits that may follow each other. No torch: a search does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mess.cache.compression import decompress
from mess.cache.pairs.store import PairBlock, PairStore, blocks
from mess.common.progress import Reporter, Task
from mess.errors import CacheError
from mess.exits import FINAL
from mess.runs.cache import RunCache
from mess.signals.variation import VARIATION, variations

_PART_SIGNALS = 2**20
"""What is computed before parts are written: seconds, or a minute with large maps."""

_MAP_BYTES = 2**28
"""Of label maps that are held at a time."""

Block = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Exits a and exits b, by position."""


def possible_pairs(exit_ids: Sequence[str], points: Mapping[str, int]) -> NDArray[np.bool_]:
    """Whether exit b may leave early after exit a, by position [a, b]: (E, E).

    Points grow from a to b, and none leaves early at the last one, that of `final`.
    """
    point_E = np.array([points[exit_id] for exit_id in exit_ids])
    return (point_E[:, np.newaxis] < point_E) & (point_E < points[FINAL])


def pair_signals(
    cache: RunCache, reporter: Reporter, wanted_EE: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Minus VI by exit a, exit b and image of a cache, (E, E, I); larger means leave.

    Exits and images are in the manifest's order. Of the possible pairs those `wanted_EE` (default:
    all) are computed where they are not stored yet; what is neither is NaN. Raises CacheError where
    that needs label maps and the cache has none.
    """
    exits, images = cache.exit_fingerprints, cache.image_fingerprints
    pairs = PairStore(cache.store.directory)
    signal_EEI = pairs.read(VARIATION, exits, images)
    of_use_EE = possible_pairs(list(exits), cache.points)
    if wanted_EE is not None:
        of_use_EE &= wanted_EE
    # Pairs are in one order here and in the line below: argwhere's is that of a boolean index.
    pair_P2 = np.argwhere(of_use_EE)
    lacks_IP = np.isnan(signal_EEI[of_use_EE]).T.copy()
    lacking = int(lacks_IP.sum())
    if not lacking:
        return signal_EEI
    if not cache.manifest["label_maps"]:
        config_file = cache.store.directory.parents[1] / "config.toml"
        raise CacheError(
            f"{cache.store.directory} holds no label maps, and comparing exits needs them. Set "
            f"`memoise.label_maps = true` in {config_file} and run {cache.store.remedy} again."
        )
    exit_ids, image_ids = list(exits), list(images)
    with reporter.task("comparing exits", lacks_IP.size, lacks_IP.size - lacking) as progress:
        for some, lacks_EE in _alike(lacks_IP, pair_P2, len(exits)):
            work = list(blocks(lacks_EE))
            for chunk in _chunks(some, lacks_EE, cache.manifest):
                ids = tuple(image_ids[index] for index in chunk)
                found = _compare(cache, ids, work, progress)
                for (a, b), signal_BAI in zip(work, found, strict=True):
                    block = PairBlock(
                        exits_a=tuple(exit_ids[index] for index in a),
                        exits_b=tuple(exit_ids[index] for index in b),
                        images=ids,
                        signal_BAI=signal_BAI,
                    )
                    # Written chunk by chunk, so that an interrupt loses the one at hand alone.
                    pairs.write(VARIATION, block, exits, images)
                    signal_EEI[np.ix_(a, b, chunk)] = signal_BAI.swapaxes(0, 1)
    # Only now: what they held has its place in new parts.
    pairs.drop_damaged()
    return signal_EEI


def _alike(
    lacks_IP: NDArray[np.bool_], pair_P2: NDArray[np.intp], exits: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Images that lack the same pairs, with those pairs as (E, E)."""
    groups: dict[bytes, list[int]] = {}
    for image, lacks_P in enumerate(lacks_IP):
        if lacks_P.any():
            groups.setdefault(lacks_P.tobytes(), []).append(image)
    for some in groups.values():
        lacks_EE = np.zeros((exits, exits), np.bool_)
        lacks_EE[tuple(pair_P2[lacks_IP[some[0]]].T)] = True
        yield np.array(some), lacks_EE


def _chunks(
    images: NDArray[np.intp], lacks_EE: NDArray[np.bool_], manifest: Mapping[str, Any]
) -> Iterator[NDArray[np.intp]]:
    """Images that are computed together, as many as the limits allow."""
    shapes = list(manifest["native_shapes"].values())
    # Every map in use is held decompressed, for all images of the chunk.
    exits = np.count_nonzero(lacks_EE.any(axis=0) | lacks_EE.any(axis=1))
    pixels = max(height * width for height, width in shapes)
    most = min(_PART_SIGNALS // np.count_nonzero(lacks_EE), _MAP_BYTES // int(exits * pixels))
    step = max(1, most)
    for start in range(0, len(images), step):
        yield images[start : start + step]


def _compare(
    cache: RunCache, image_ids: Sequence[str], work: Sequence[Block], progress: Task
) -> Iterator[NDArray[np.float32]]:
    """The signals of each block, (B, A, I)."""
    # Exit b outside, exit a inside: each block's pairs become (B, A, I) by a reshape alone.
    pair_P2 = np.array([(a, b) for exits_a, exits_b in work for b in exits_b for a in exits_a])
    # An exit is in many pairs; its maps are decompressed once.
    used, position = np.unique(pair_P2, return_inverse=True)
    maps = _label_maps(cache, image_ids, used)
    signal_IP = np.empty((len(image_ids), len(pair_P2)), np.float32)
    classes = len(cache.manifest["classes"])
    for image, signal_P in enumerate(variations(maps, position.reshape(-1, 2), classes)):
        signal_IP[image] = signal_P
        progress.advance(len(signal_P))
    start = 0
    for exits_a, exits_b in work:
        end = start + len(exits_a) * len(exits_b)
        yield signal_IP[:, start:end].T.reshape(len(exits_b), len(exits_a), len(image_ids))
        start = end


def _label_maps(
    cache: RunCache, image_ids: Sequence[str], exits: NDArray[np.intp]
) -> list[NDArray[np.uint8]]:
    """The label maps of exits by position, (I, h, w) each."""
    exit_ids = list(cache.exit_fingerprints)
    compressed = cache.label_maps(image_ids)
    maps = []
    for exit_id in (exit_ids[index] for index in exits):
        shape = tuple(cache.manifest["native_shapes"][exit_id])
        some_Ihw = np.empty((len(image_ids), *shape), np.uint8)
        for image, image_id in enumerate(image_ids):
            content = compressed.get((exit_id, image_id))
            if content is None:
                raise CacheError(
                    f"{cache.store.directory} has no label map of {exit_id} for image {image_id}. "
                    f"Run {cache.store.remedy} to compute what is missing."
                )
            some_Ihw[image] = decompress(content, shape)
        maps.append(some_Ihw)
    return maps
