"""What was planned on which images."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mess.errors import DataError
from mess.runs.plans import PLAN, Plan, confidence_together, settling
from mess.runs.run import Run

A_PLAN = Plan(
    tested=["a bundle"],
    limits={"max_error": 0.01},
    confidence=0.95,
    split="test",
    root=None,
    images={"one": "1", "two": "2"},
    groups=["one", "two"],
)


def test_a_plan_is_known_by_all_of_it() -> None:
    others = [
        replace(A_PLAN, tested=["another"]),
        replace(A_PLAN, tested=["a bundle", "another"]),
        replace(A_PLAN, limits={"max_error": 0.02}),
        replace(A_PLAN, limits={"min_miou": 0.01}),
        replace(A_PLAN, confidence=0.9),
        replace(A_PLAN, split="train"),
        replace(A_PLAN, root="elsewhere"),
        replace(A_PLAN, images={"one": "1", "two": "3"}),
        replace(A_PLAN, images={"two": "2", "one": "1"}),
        replace(A_PLAN, groups=["one", "one"]),
    ]
    assert len({plan.digest for plan in [A_PLAN, *others]}) == 1 + len(others)
    assert replace(A_PLAN, tested=("a bundle",)).digest == A_PLAN.digest


def test_images_that_are_used_again_spend_confidence(tmp_path: Path) -> None:
    place = Run(tmp_path)
    assert confidence_together(place, A_PLAN) == pytest.approx(0.95)
    A_PLAN.write(place)
    # The same plan is the same test.
    assert confidence_together(place, A_PLAN) == pytest.approx(0.95)
    second = replace(A_PLAN, confidence=0.9, images={"two": "2", "three": "3"}, root="elsewhere")
    assert confidence_together(place, second) == pytest.approx(0.85)
    second.write(place)
    apart = replace(A_PLAN, images={"four": "4"}, groups=["four"])
    assert confidence_together(place, apart) == pytest.approx(0.95)
    # The first one's promise is worth less, too, now that there is a second.
    assert confidence_together(place, A_PLAN) == pytest.approx(0.85)


def test_two_plans_at_once_see_each_other(
    tmp_path: Path,
) -> None:
    """Each in a thread, whose lock is as good as another process's: it is the open file's."""
    place, begun = Run(tmp_path), threading.Barrier(2, timeout=10)

    def settle(plan: Plan) -> float:
        begun.wait()
        with settling(place):
            together = confidence_together(place, plan)
            time.sleep(0.1)  # in which the other would read
            plan.write(place)
        return together

    with ThreadPoolExecutor(2) as pool:
        found = sorted(pool.map(settle, [A_PLAN, replace(A_PLAN, tested=["another"])]))
    assert found == pytest.approx([0.9, 0.95])


def test_images_are_used_up(tmp_path: Path) -> None:
    place = Run(tmp_path)
    for number in range(4):
        replace(A_PLAN, confidence=0.9, limits={"max_error": number / 100}).write(place)
    with pytest.raises(DataError, match="used up: with this one 5 certificates .* 0.50"):
        confidence_together(place, replace(A_PLAN, confidence=0.9, limits={"max_error": 0.5}))


def test_a_plan_is_written_once(tmp_path: Path) -> None:
    place = Run(tmp_path)
    folder = A_PLAN.write(place)
    before = (folder / PLAN).stat().st_mtime_ns
    assert A_PLAN.write(place) == folder
    assert (folder / PLAN).stat().st_mtime_ns == before
    assert json.loads((folder / PLAN).read_text())["digest"] == A_PLAN.digest


def test_a_damaged_plan_is_no_unused_image(tmp_path: Path) -> None:
    place = Run(tmp_path)
    (A_PLAN.write(place) / PLAN).write_text("{}")
    with pytest.raises(DataError, match="lacks digest.*must be known"):
        confidence_together(place, A_PLAN)


@pytest.mark.parametrize(
    "change", [{"confidence": 0.999}, {"images": {"two": "2", "one": "1"}}, {"images": {}}]
)
def test_an_altered_plan_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Also where the order of its images is."""
    file = A_PLAN.write(Run(tmp_path)) / PLAN
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match="was altered after it was written.*must be known"):
        confidence_together(Run(tmp_path), A_PLAN)
