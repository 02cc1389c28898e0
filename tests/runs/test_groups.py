"""Groups of images as `data.groups` gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mess.config import DataConfig
from mess.errors import ConfigError, DataError
from mess.runs.groups import distinct_groups, groups_of, shared_groups
from mess.search.guarantees.groups import Groups

IDS = ("a_1", "a_2", "b_1")


def test_without_groups_every_image_is_its_own() -> None:
    assert groups_of(DataConfig(groups=None), IDS).of_image.tolist() == [0, 1, 2]


def test_the_capture_of_a_regular_expression() -> None:
    found = groups_of(DataConfig(groups="^(.*)_"), IDS)
    assert (found.names, found.of_image.tolist()) == (("a", "b"), [0, 0, 1])


def test_a_file_may_name_other_images_and_have_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("group,image_id,camera\n07,a_1,x\n07,a_2,x\n7,b_1,y\n9,c_1,y\n7,b_1,z\n")
    found = groups_of(DataConfig(groups=str(path)), IDS)
    # As text: 07 and 7 are not the same.
    assert (found.names, found.of_image.tolist()) == (("07", "7"), [0, 0, 1])


def test_files_that_are_equal_count_once_with_all_of_their_groups() -> None:
    images = {f"{group}_{n}": f"{group}{n}" for group in "abcdefgh" for n in range(2)}
    assert len(distinct_groups(DataConfig(groups="^(.*)_"), images)) == 8
    images["b_1"] = images["g_0"]
    found = distinct_groups(DataConfig(groups="^(.*)_"), images)
    together = [i for i, group in enumerate(found.of_image) if group == found.of_image[2]]
    assert [list(images)[i] for i in together] == ["b_0", "b_1", "g_0", "g_1"]
    assert len(found) == 7
    with pytest.raises(DataError, match="the 12 images are all alike"):
        distinct_groups(DataConfig(groups=None), dict.fromkeys(map(str, range(12)), "one"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,group\na_1,x\na_2,x\n", "gives 1 of 3 images no group, such as 'b_1'"),
        ("image_id,group\na_1,x\na_2,x\nb_1,x\nb_1,y\n", "gives image 'b_1' more than one group"),
        ("image,group\na_1,x\n", "needs the columns image_id and group, got image, group"),
        # An empty cell is no group: all images without one would be taken for one.
        ("image_id,group\na_1,x\na_2,\nb_1,\n", "gives 2 of 3 images no group, such as 'a_2'"),
        ("image_id,group\nother,x\n", "gives 3 of 3 images no group, such as 'a_1'"),
        ("", "is no CSV file"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(content)
    with pytest.raises((ConfigError, DataError), match=message):
        groups_of(DataConfig(groups=str(path)), IDS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.csv", "does not exist"),
        ("(", "is no regular expression"),
        ("a_.", "has 0 captures and needs one"),
        ("(a)(_)", "has 2 captures and needs one"),
        ("^(a)_", "gives 1 of 3 images no group, such as 'b_1'"),
        # A capture that takes no part, or nothing, names no group either.
        ("^(?:(a)|b)_", "gives 1 of 3 images no group, such as 'b_1'"),
        ("^(a?)", "gives 1 of 3 images no group, such as 'b_1'"),
    ],
)
def test_faults_of_an_expression_are_named(spec: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        groups_of(DataConfig(groups=spec), IDS)


def test_groups_that_were_searched_are_told() -> None:
    fresh, searched = Groups.of(["c", "a", "c"]), Groups.of(["a", "b"])
    told = shared_groups("^(.)", fresh, searched)
    assert told is not None
    assert told.startswith("1 of the 2 groups, such as 'a', have images that were searched")
    assert shared_groups("^(.)", Groups.of(["c"]), searched) is None
    # Images alone have numbers for names, which mean nothing.
    assert shared_groups(None, Groups.alone(2), Groups.alone(3)) is None


TILES = ("a_1@0-0", "a_1@0-1", "a_2@0-0", "b_1@0-0")


def test_tiles_are_in_the_group_of_their_image(tmp_path: Path) -> None:
    tiles = DataConfig(fit="tile")
    found = groups_of(tiles, TILES)
    assert (found.names, found.of_image.tolist()) == (("a_1", "a_2", "b_1"), [0, 0, 1, 2])
    path = tmp_path / "groups.csv"
    path.write_text("image_id,group\na_1,x\na_2,x\nb_1,y\n")
    # To the end: of the tile the expression would see another id.
    for spec in ("^(.*)_[0-9]$", str(path)):
        found = groups_of(tiles.model_copy(update={"groups": spec}), TILES)
        assert found.of_image.tolist() == [0, 0, 0, 1]
    with pytest.raises(DataError, match="gives 1 of 3 images no group, such as 'b_1'"):
        groups_of(tiles.model_copy(update={"groups": "^(a)"}), TILES)


def test_a_name_like_a_tile_s_is_none_where_images_are_whole() -> None:
    assert groups_of(DataConfig(), TILES).of_image.tolist() == [0, 1, 2, 3]
    assert groups_of(DataConfig(groups="@(.*)$"), TILES).names == ("0-0", "0-1")


def test_copies_of_an_image_join_the_groups_of_their_tiles() -> None:
    images = {f"{image}@0-{n}": f"{image}{n}" for image in "abcdefgh" for n in range(2)}
    images |= {"h@0-0": "a0", "h@0-1": "a1"}
    found = distinct_groups(DataConfig(fit="tile"), images)
    assert len(found) == 7
    assert len(set(found.of_image[[0, 1, 14, 15]].tolist())) == 1
