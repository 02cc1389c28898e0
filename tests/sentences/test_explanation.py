"""What held an answer back, as the command line would take it."""

from __future__ import annotations

import pytest

from mess.sentences.explanation import explanation_lines


@pytest.mark.parametrize(
    ("checkpoint", "flag"),
    [([5.0, 0.6], "--checkpoint 5=0.6"), ([None, 0.6], "--checkpoint early=0.6")],
)
def test_a_checkpoint_is_told_as_it_is_asked_for(checkpoint: list[float | None], flag: str) -> None:
    told = {"unit": "MACs", "buys": [], "binding": ["checkpoints[0]"], "next": {}}
    result = {
        "explanation": told,
        "constraints": {"checkpoints": [checkpoint]},
        "checkpoints": [],
        "cache": {"labels": "masks"},
    }
    assert explanation_lines(result) == [f"Held back by {flag}."]
