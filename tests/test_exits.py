"""Exit architectures and their identifiers."""

from __future__ import annotations

import itertools

import pytest

from mess.exits import ExitArchitecture, architectures, parse_exit_id

FULL = architectures((1, 2, 4, 8), (0, 1, 2, 3), (False, True), ("fcn", "dlb"))


def test_the_papers_options_give_56_distinct_architectures() -> None:
    assert len(FULL) == 56
    assert len(set(FULL)) == 56


def test_the_eight_missing_of_64_are_rapid_dilation_without_blocks() -> None:
    every = set(itertools.product((1, 2, 4, 8), (0, 1, 2, 3), (False, True), ("fcn", "dlb")))
    missing = every - {(a.crm, a.blocks, a.rdi, a.head) for a in FULL}
    assert missing == set(itertools.product((1, 2, 4, 8), (0,), (True,), ("fcn", "dlb")))


@pytest.mark.parametrize("rdi", [(True,), (False,), (True, False), (False, True)])
def test_exits_without_blocks_are_there_once_whatever_rapid_dilation_is(
    rdi: tuple[bool, ...],
) -> None:
    names = [a.exit_id(1) for a in architectures((1, 2), (0, 1), rdi, ("fcn",))]
    assert sorted(names) == sorted(
        f"p1-crm{crm}-{blocks}-fcn"
        for crm in (1, 2)
        for blocks in ["b0", *("b1-rdi" if each else "b1" for each in rdi)]
    )
    assert [a.exit_id(3) for a in architectures((1,), (0,), rdi, ("dlb",))] == ["p3-crm1-b0-dlb"]


def test_identifiers_are_spelled_as_the_contract_says() -> None:
    assert ExitArchitecture(2, 1, True, "fcn").exit_id(3) == "p3-crm2-b1-rdi-fcn"
    assert ExitArchitecture(8, 0, False, "dlb").exit_id(12) == "p12-crm8-b0-dlb"


def test_identifiers_are_unique_and_parse_back() -> None:
    pairs = [(point, architecture) for point in (1, 6, 10) for architecture in FULL]
    identifiers = [architecture.exit_id(point) for point, architecture in pairs]
    assert len(set(identifiers)) == len(pairs)
    assert [parse_exit_id(name) for name in identifiers] == pairs


@pytest.mark.parametrize(
    "name",
    [
        "",
        "final",
        "p1",
        "p1-crm1-b0",
        "crm1-b0-fcn",
        "p1-crm1-b0-fcn-more",
        "p1-crm1-b0-fcn\n",
        " p1-crm1-b0-fcn",
        "p-1-crm1-b0-fcn",
        "P1-crm1-b0-fcn",
    ],
)
def test_what_is_no_identifier_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not an exit identifier") as refusal:
        parse_exit_id(name)
    assert repr(name) in str(refusal.value)


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="rdi needs at least one block"):
        ExitArchitecture(1, 0, True, "fcn")
    with pytest.raises(ValueError, match="rdi needs at least one block"):
        parse_exit_id("p1-crm1-b0-rdi-fcn")
    with pytest.raises(ValueError, match="got 0 and 1"):
        ExitArchitecture(0, 1)
    with pytest.raises(ValueError, match="got 1 and -1"):
        ExitArchitecture(1, -1)
