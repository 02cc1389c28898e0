"""Atomic writes and content hashes."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mess.errors import MessError

CONTENT_DIGITS = 16
"""Of a content's sha256, in the names that `write_named_by_content` gives."""

_ABANDONED_SECONDS = 3600.0

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error.

    A kill or a full disk leaves the old file, or none, never half of the new one.
    """
    with _temporary(path) as temporary:
        yield temporary
        _settle(temporary, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that replaces it when the block ends without an error.

    Several at once do not see each other's, and the last one stays. A kill leaves the old folder,
    or none, and what is hidden besides, which a later call deletes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # As of files, what is random comes last.
    hidden = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(hidden)}????????"):
        if left.is_dir() and is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=hidden))
    try:
        with room_for(path):
            # Not `aside` itself, which its owner alone may read.
            building = aside / "new"
            building.mkdir()
            yield building
            _settle_folder(building, path, aside / "old")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _settle_folder(building: Path, path: Path, old: Path) -> None:
    while True:
        # A rename replaces no folder that holds files, so the old one steps aside first.
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            building.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another was put there in between, and is the older one now.
            shutil.rmtree(old, ignore_errors=True)


def is_abandoned(path: Path) -> bool:
    """Whether what is not finished, and written without a lock, is of a command that was killed."""
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False  # finished meanwhile


def write_named_by_content(
    folder: Path, stem: str, suffix: str, write: Callable[[Path], None]
) -> Path:
    """Have `write` make a file, named STEM-DIGITS.SUFFIX in `folder` by its sha256, atomically.

    Writers with different contents cannot overwrite each other's files, and a file that is not
    what its name says has been damaged.
    """
    with _temporary(folder / f"{stem}{suffix}") as temporary:
        write(temporary)
        path = folder / f"{stem}-{sha256(temporary)[:CONTENT_DIGITS]}{suffix}"
        _settle(temporary, path)
    return path


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, since a rename is atomic within one file system alone. What is random comes
    # last, so that no pattern such as *.parquet finds what is not finished.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with room_for(path):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raise MessError, which says what to do, where the disk is too full to write `path`."""
    try:
        yield
    except Exception as error:
        if _system_error(error) in _NO_ROOM:
            raise MessError(
                f"{path} cannot be written: there is no room for it ({error}). Free some and run "
                "the same command again; what was finished before is kept."
            ) from error
        raise


def _system_error(error: Exception) -> int | None:
    """The operating system's number of an error; Rust libraries tell it in words alone."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def _settle(temporary: Path, path: Path) -> None:
    # mkstemp makes files that only their owner reads, and the mask is read by setting it.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    # Before the rename: after a power cut the new name could otherwise hold nothing.
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def remove_leftovers(path: Path) -> None:
    """Delete what killed writers of `path` left beside it; none may be at work meanwhile.

    So of `path` with more behind its stem, such as the share of one process.
    """
    # safetensors makes a temporary file of its own beside the one it is to write.
    # Eight characters are what mkstemp adds, so nobody's .notes or .lock is taken for one.
    for name in (f".{path.stem}*{path.suffix}.????????", ".tmp??????"):
        for left in path.parent.glob(name):
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
