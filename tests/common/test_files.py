"""Atomic writes: the old file or the new one, never a part, never a left-over."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from mess.common.files import (
    atomic_folder,
    atomic_path,
    remove_leftovers,
    sha256,
    write_json,
    write_text,
)
from mess.errors import MessError


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_block_without_an_error_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert contents(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_the_block_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["file.txt"]


def test_an_error_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "new.txt", RuntimeError)
    assert contents(tmp_path) == []


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "made") as building:
            (building / content).write_text(content)
    assert contents(tmp_path) == ["made"]
    assert contents(tmp_path / "made") == ["new"]
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_folder_that_another_put_there_meanwhile_is_the_older_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as ours, atomic_folder(tmp_path / "made") as theirs:
        (ours / "ours").touch()
        (theirs / "theirs").touch()
    assert contents(tmp_path) == ["made"]
    assert contents(tmp_path / "made") == ["ours"]


def test_a_folder_put_there_between_two_renames_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, stolen = Path.rename, list[Path]()

    def first_of_another(path: Path, target: Path) -> Path:
        if path.name == "new" and not stolen:
            stolen.append(target)
            target.mkdir()
            (target / "theirs").touch()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", first_of_another)
    with atomic_folder(tmp_path / "made") as building:
        (building / "ours").touch()
    assert stolen == [tmp_path / "made"]
    assert contents(tmp_path / "made") == ["ours"]


def test_what_a_killed_writer_of_a_folder_left_goes_after_an_hour(tmp_path: Path) -> None:
    for left, age in ((".made.abandond", 7200), (".made.at_work_", 60), (".made.notes", 7200)):
        (tmp_path / left / "new").mkdir(parents=True)
        then = time.time() - age
        os.utime(tmp_path / left, (then, then))
    with atomic_folder(tmp_path / "made"):
        pass
    assert contents(tmp_path) == [".made.at_work_", ".made.notes", "made"]


def test_an_error_or_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "made" / "old").mkdir(parents=True)
    no_room = pytest.raises(MessError, match=r"made cannot be written: there is no room")
    with no_room, atomic_folder(tmp_path / "made"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert contents(tmp_path) == ["made"]
    assert contents(tmp_path / "made") == ["old"]


def test_parent_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "naïve")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "naïve"


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    # A temporary file is private; a result that only its author can read is not what one expects.
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "atomic", "x")
    assert os.stat(tmp_path / "atomic").st_mode == os.stat(plain).st_mode


def test_json_round_trips(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "v.json", value)
    assert json.loads((tmp_path / "v.json").read_text()) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(
    tmp_path: Path, number: float
) -> None:
    write_json(tmp_path / "v.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "v.json", {"a": number})
    assert json.loads((tmp_path / "v.json").read_text()) == {"a": 1}
    assert contents(tmp_path) == ["v.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named(tmp_path: Path, error: Exception) -> None:
    """Libraries in Rust have errors of their own for it."""
    message = r"file\.txt cannot be written: there is no room"
    with pytest.raises(MessError, match=message), atomic_path(tmp_path / "file.txt"):
        raise error
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), ValueError("(os error 13)"), KeyError(28)]
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, atomic_path(tmp_path / "file.txt"):
        raise error
    assert raised.value is error


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    kept = [".lock", ".notes", "weights.bin", "weights.bin.12345678", ".weights.toml"]
    left = [".weights.bin.ab3_d5xz", ".weights-2.bin.ab3_d5xz", ".tmpQjhL4T"]
    for name in [*kept, *left]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "weights.bin")
    assert contents(tmp_path) == sorted(kept)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "data").write_bytes(data)
    assert sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()
