"""Hashes of files, remembered for as long as the files look untouched."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from time import time_ns

from mess.common.files import sha256, write_text
from mess.errors import MessError

_State = list[int]
"""Of a file: size, time of modification and of any change (nanoseconds), inode."""

_SETTLED_NS = 2 * 10**9
"""The coarsest clock of a file system still in use; younger files may change and look the same."""


class FileHashes:
    """The sha256 of files, kept in the JSON file `record` from one process to the next.

    A file that has the size, times and inode it had when it was read is not read again. Setting its
    time of modification back hides no change, for nobody can set the time of change. The record is
    a shortcut that can be done without: one that is missing, damaged or cannot be written costs
    time alone.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self._stored = _read(record)
        self._known = self._stored
        self._seen: dict[str, tuple[_State, str]] = {}

    def sha256(self, path: Path) -> str:
        """Hex digest of a file's content."""
        name, begun, state = str(path.absolute()), time_ns(), _state(path)
        known_state, digest = self._known.get(name, (None, ""))
        if state != known_state:
            # Its state was taken first: a change from now on makes another state than is kept.
            digest = sha256(path)
        # A file changed within the last tick can change again and keep its times: not remembered.
        if max(state[1:3]) + _SETTLED_NS < begun:
            self._seen[name] = state, digest
        return digest

    def forget(self) -> None:
        """Read every file from now on, whatever the record says."""
        self._known = {}

    def save(self) -> None:
        """Keep what was asked for, if it can be kept."""
        # What was seen alone: files that are gone leave the record.
        if self._seen == self._stored:
            return
        with suppress(OSError, MessError):  # a run that is read-only, a full disk
            write_text(self.record, json.dumps(self._seen))


def _state(path: Path) -> _State:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(record: Path) -> dict[str, tuple[_State, str]]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        # States need no check: one that is no file's own equals none.
        entries = {name: (state, digest) for name, (state, digest) in content.items()}
        if all(len(bytes.fromhex(digest)) == 32 for _, digest in entries.values()):
            return entries
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    return {}
