"""A remembered hash is that of the file as it is now, or it is not used."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from mess.common import file_hashes
from mess.common.file_hashes import FileHashes

OLD = 10**18
"""A time in nanoseconds, years ago."""


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "hashes.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    return path


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since the files were written."""
    now = file_hashes.time_ns
    monkeypatch.setattr(file_hashes, "time_ns", lambda: now() + 3600 * 10**9)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hashed(record: Path, file: Path) -> tuple[str, bool]:
    """What a new process says, and whether it read the file."""
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return digest(path.read_bytes())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(file_hashes, "sha256", sha256)
        hashes = FileHashes(record)
        found = hashes.sha256(file)
        hashes.save()
    return found, bool(read)


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once(record: Path, file: Path) -> None:
    assert hashed(record, file) == (digest(b"before"), True)
    assert hashed(record, file) == (digest(b"before"), False)


@pytest.mark.usefixtures("later")
def test_a_change_is_noticed_whatever_its_modification_time_says(record: Path, file: Path) -> None:
    os.utime(file, ns=(OLD, OLD))
    hashed(record, file)
    file.write_bytes(b"after!")
    os.utime(file, ns=(OLD, OLD))
    assert hashed(record, file) == (digest(b"after!"), True)
    assert hashed(record, file) == (digest(b"after!"), False)


@pytest.mark.usefixtures("later")
def test_another_file_under_the_same_name_is_noticed(
    record: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two written at the same moment, as when folders change places."""
    other = file.with_name("b.png")
    other.write_bytes(b"after!")
    states = {path.stat().st_ino: file_hashes._state(path) for path in (file, other)}
    monkeypatch.setattr(
        file_hashes,
        "_state",
        lambda path: [6, OLD, OLD, states[path.stat().st_ino][3]],
    )
    hashed(record, file)
    other.replace(file)
    assert hashed(record, file) == (digest(b"after!"), True)


@pytest.mark.parametrize(
    ("age", "found"),
    [(0.0, b"after!"), (1.9, b"after!"), (-60.0, b"after!"), (2.1, b"before")],
)
def test_a_write_within_the_clocks_step_is_noticed(
    record: Path, file: Path, monkeypatch: pytest.MonkeyPatch, age: float, found: bytes
) -> None:
    """A file written just before it was read may be written again and look the same."""
    monkeypatch.setattr(file_hashes, "time_ns", lambda: OLD)
    for times in ([OLD - int(age * 1e9), 0], [0, OLD - int(age * 1e9)]):
        file.write_bytes(b"before")
        monkeypatch.setattr(file_hashes, "_state", lambda _, times=times: [6, *times, 1])
        record.unlink(missing_ok=True)
        hashed(record, file)
        file.write_bytes(b"after!")
        assert hashed(record, file)[0] == digest(found)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"a": 1}', "\udcff", "state", "digest"])
def test_a_damaged_record_is_ignored(record: Path, file: Path, damage: str) -> None:
    hashed(record, file)
    ((name, (state, known)),) = json.loads(record.read_text()).items()
    if damage == "state":
        damage = json.dumps({name: [{"size": 6}, known]})
    elif damage == "digest":
        damage = json.dumps({name: [state, known[:-2]]})
    record.write_bytes(damage.encode(errors="surrogateescape"))
    assert hashed(record, file) == (digest(b"before"), True)
    assert hashed(record, file) == (digest(b"before"), False)


@pytest.mark.usefixtures("later")
def test_what_is_no_longer_asked_for_is_forgotten(record: Path, file: Path) -> None:
    hashed(record, file)
    other = file.with_name("b.png")
    other.write_bytes(b"other")
    hashed(record, other)
    assert list(json.loads(record.read_text())) == [str(other)]


@pytest.mark.usefixtures("later")
def test_a_record_that_cannot_be_written_is_done_without(file: Path) -> None:
    below_a_file = file / "hashes.json"
    assert hashed(below_a_file, file) == (digest(b"before"), True)
    assert hashed(below_a_file, file) == (digest(b"before"), True)
