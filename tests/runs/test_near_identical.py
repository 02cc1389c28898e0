"""Nearly identical images are found, and unrelated ones are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data as pictures

from mess.common.images import resize_image, thumbnail
from mess.runs.near_identical import nearest_elsewhere, suggested_groups
from mess.sentences.near_identical import near_identical_lines
from tests.seeds import seeded

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "moon", "clock")

SIZE = (96, 128)


def frames(name: str, count: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """A camera that moves by 0.5% of the picture a frame, with noise of its own in each."""
    picture = getattr(pictures, name)()
    picture = np.stack([picture] * 3, axis=2) if picture.ndim == 2 else picture[:, :, :3]
    height, width = (int(0.8 * side) for side in picture.shape[:2])
    found = []
    for frame in range(count):
        top, left = (round(0.005 * frame * side) for side in (height, width))
        view = picture[top : top + height, left : left + width]
        noisy = view + rng.normal(0, 5, view.shape)
        found.append(resize_image(noisy.clip(0, 255).astype(np.uint8), SIZE))
    return found


def thumbnails(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack([thumbnail(image).ravel() for image in images])


def test_frames_of_a_video_are_found_and_other_pictures_are_not() -> None:
    rng = np.random.default_rng(seeded(0))
    videos = [frames(name, 3, rng) for name in PHOTOGRAPHS]
    images = thumbnails([frame for video in videos for frame in video])
    ids = [f"{name}-{frame}" for name in PHOTOGRAPHS for frame in range(3)]
    alone = nearest_elsewhere(images, np.arange(24), ids)
    assert (alone // 3 == np.arange(24) // 3).all()
    # By the names of the videos there is nothing left to warn of, whatever the order.
    shuffled = rng.permutation(24)
    by_video = nearest_elsewhere(images[shuffled], shuffled // 3, [ids[i] for i in shuffled])
    assert by_video.tolist() == [-1] * 24


def test_the_nearest_of_another_group_by_a_plain_loop() -> None:
    rng = np.random.default_rng(seeded(1))
    scenes = rng.integers(0, 256, (20, 64))
    images = (scenes[rng.integers(20, size=60)] + rng.integers(-12, 13, (60, 64))).clip(0, 255)
    group, ids = rng.integers(4, size=60), [str(number) for number in rng.permutation(60)]
    found = nearest_elsewhere(images.astype(np.uint8), group, ids)
    for i in range(60):
        others = [j for j in range(60) if group[j] != group[i]]
        differ = [
            np.square(images[i] - images[j]).mean() / (images[i].var() + images[j].var())
            for j in others
        ]
        nearest = int(np.argmin(differ))
        assert (found[i] >= 0) == (differ[nearest] <= 0.02)
        if found[i] >= 0:
            assert differ[others.index(int(found[i]))] == pytest.approx(differ[nearest], rel=1e-6)
    assert 0 < (found >= 0).sum() < 60


def test_pictures_without_contrast_are_alike_only_where_they_are_equal() -> None:
    images = np.full((4, 64), 100, dtype=np.uint8)
    images[2] = 101
    images[3, ::2] = 99
    found = nearest_elsewhere(images, np.arange(4), ["a", "b", "c", "d"])
    assert found.tolist() == [1, 0, -1, -1]


def test_of_many_images_neighbours_in_the_order_of_ids_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mess.runs.near_identical._APART", 10)
    monkeypatch.setattr("mess.runs.near_identical._ROWS", 7)
    rng = np.random.default_rng(seeded(2))
    order = rng.permutation(100)
    images = rng.integers(0, 256, (100, 64)).astype(np.uint8)
    images[order[41]] = images[order[40]]
    images[order[90]] = images[order[10]]
    ids = [""] * 100
    for place, index in enumerate(order):
        ids[index] = f"{place:03d}"
    found = nearest_elsewhere(images, np.arange(100), ids)
    assert (found >= 0).sum() == 2
    assert found[order[40]] == order[41]


@pytest.mark.parametrize(
    ("ids", "alike", "pattern"),
    [
        # Frames: all but the number at the end.
        (["0001_07", "0001_08", "0002_01"], [("0001_07", "0001_08")], "^(.*)_[0-9]+$"),
        (["a-x1", "a-x2", "b-x1"], [("a-x1", "a-x2")], "^(.*?)[0-9]+$"),
        # Tiles: what stands before the last separator, and before the first.
        (["s1_a_b", "s1_c_d", "s2_a_b"], [("s1_a_b", "s1_c_d")], "^([^_]*)_"),
        # Nothing in these names keeps them together.
        (["f3a", "77b", "0c1"], [("f3a", "77b")], None),
        (["1", "2", "3"], [("1", "2")], None),
    ],
)
def test_groups_are_suggested_by_what_the_ids_of_pairs_share(
    ids: list[str], alike: list[tuple[str, str]], pattern: str | None
) -> None:
    assert suggested_groups(ids, alike) == pattern


def test_what_was_found_is_said_with_the_next_move() -> None:
    found = {"images": 2, "pair": ["a_1", "a_2"], "suggested": "^(.*)_[0-9]+$", "groups": 1}
    (line,) = near_identical_lines({"near_identical": found}, 9)
    assert "2 of 9 images are nearly identical to one of another group, such as a_1" in line
    assert "data.groups = '^(.*)_[0-9]+$' would make 1 group of all images" in line
    nothing = {"images": 0, "pair": [], "suggested": None, "groups": None}
    assert near_identical_lines({"near_identical": nothing, "near_searched": None}, 9) == []
    unnamed = found | {"images": 1, "suggested": None, "groups": None}
    (line,) = near_identical_lines({"near_searched": unnamed}, 9)
    assert "1 of 9 images is nearly identical to one that was searched" in line
