"""Records: what is missing or of another type is named by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from mess.common.records import DIGEST, read_log, read_record, require_unaltered, with_digest
from mess.errors import CacheError


class Part(TypedDict):
    name: str
    share: float | None


class Whole(TypedDict):
    parts: list[Part]
    counts: dict[str, int]
    done: bool
    more: NotRequired[list[str]]


GOOD: dict[str, Any] = {
    "parts": [{"name": "a", "share": 1}, {"name": "b", "share": None, "unknown": 1}],
    "counts": {"x": 3},
    "done": False,
}


def read(path: Path, content: object) -> Whole:
    path.write_text(json.dumps(content))
    return read_record(path, Whole, "Make it again.", CacheError)


@pytest.mark.parametrize("more", [{}, {"more": ["a"]}, {"unknown": None}])
def test_what_is_as_it_should_be_comes_back_as_it_is(
    tmp_path: Path, more: dict[str, object]
) -> None:
    assert read(tmp_path / "file.json", GOOD | more) == GOOD | more


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"parts": [{"name": "a"}]}, "lacks parts[0].share"),
        ({"parts": [{"name": "a", "share": "1"}]}, "has parts[0].share = '1'"),
        ({"parts": [{"name": 1, "share": 1.0}]}, "has parts[0].name = 1"),
        ({"parts": [3]}, "has parts[0] = 3"),
        ({"parts": {}}, "has parts = {}"),
        ({"counts": {"x": 1.5}}, "has counts.x = 1.5"),
        ({"counts": {"x": True}}, "has counts.x = True"),
        ({"done": 0}, "has done = 0"),
        ({"more": None}, "has more = None"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, changes: dict[str, object], fault: str) -> None:
    with pytest.raises(CacheError) as error:
        read(tmp_path / "file.json", GOOD | changes)
    assert str(error.value) == f"{tmp_path / 'file.json'} {fault}. Make it again."


@pytest.mark.parametrize("key", ["parts", "counts", "done"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(CacheError, match=rf"file\.json lacks {key}\. Make it again\."):
        read(tmp_path / "file.json", {name: GOOD[name] for name in GOOD if name != key})


def test_what_is_no_object_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is no JSON object"):
        read(tmp_path / "file.json", [])
    (tmp_path / "file.json").write_text("{")
    with pytest.raises(CacheError, match=r"file\.json is damaged: .* Make it again\."):
        read_record(tmp_path / "file.json", Whole, "Make it again.", CacheError)


def test_a_digest_is_of_the_content_and_not_of_its_layout(tmp_path: Path) -> None:
    signed = with_digest(GOOD | {"more": ("a", "b")})
    assert signed == GOOD | {"more": ["a", "b"], DIGEST: signed[DIGEST]}
    assert with_digest(signed) == signed
    again = json.loads(json.dumps(dict(reversed(signed.items())), indent=7))
    require_unaltered(again, tmp_path, "Make it again.")
    # Without one it is of an earlier version.
    require_unaltered(GOOD, tmp_path, "Make it again.")


@pytest.mark.parametrize(
    "change",
    [
        {"done": True},
        {"counts": {"x": 4}},
        {"parts": [{"name": "a", "share": 1 + 1e-15}, {"name": "b", "share": None, "unknown": 1}]},
        {"added": 1},
        {DIGEST: "0" * 64},
        {DIGEST: None},
    ],
)
def test_what_was_altered_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(CacheError, match=r"file\.json was altered.*Make it again\."):
        require_unaltered(with_digest(GOOD) | change, path, "Make it again.", CacheError)


BAD_LINES = (
    "null", "}{", "[]", "7", "", "\0\0", "[" * 5000,
    '{"stage": "a"}', '{"iteration": 1}', '{"stage": 1, "iteration": 1}',
    '{"stage": "a", "iteration": 1.5}', '{"stage": "a", "iteration": 1, "mean": null}',
    '{"stage": "a", "iteration": 1, "mean": NaN}', '{"stage": "a", "iteration": 1, "mean": true}',
)  # fmt: skip


def test_a_log_has_the_rows_between_lines_that_are_none(tmp_path: Path) -> None:
    rows = [
        {"stage": "a", "iteration": 1, "mean": 0.5},
        {"stage": "b", "iteration": 2, "final": 1},
    ]
    first, second = (json.dumps(row).encode() for row in rows)
    bad = [*(line.encode() for line in BAD_LINES), b"\xff"]
    (tmp_path / "log").write_bytes(b"\n".join([*bad, first, *bad, second, *bad, first]))
    # The last line has no end.
    assert list(read_log(tmp_path / "log")) == rows
