"""What accuracy is against is said wherever there are no masks."""

from __future__ import annotations

import pytest

from mess.sentences.accuracy import against, labels_of
from mess.sentences.explanation import explanation_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mIoU", "mIoU against the final exit"),
        ("error 0.0100.", "error against the final exit 0.0100."),
        ("(error <= 0.1)", "(error against the final exit <= 0.1)"),
        ("IoU of every class", "IoU against the final exit of every class"),
        # Options are what the command line takes, and other words are others.
        ("raise --max-error to 0.1, --min-miou 0.2", "raise --max-error to 0.1, --min-miou 0.2"),
        ("errors, mIoUs, max_error", "errors, mIoUs, max_error"),
        ("3 ms", "3 ms"),
    ],
)
def test_no_word_for_accuracy_stands_alone(text: str, expected: str) -> None:
    assert against(text, "final") == expected
    assert against(expected, "final") == expected
    assert against(text, "masks") == text


def test_results_of_earlier_versions_are_of_masks() -> None:
    assert labels_of({"cache": {"name": "night"}}) == labels_of({}) == "masks"
    assert labels_of({"cache": {"labels": "final"}}) == "final"


def test_an_explanation_says_what_it_is_against() -> None:
    point = {"exits": ["p1", "final"], "miou": 0.9, "error": 0.1, "cost": 2.0}
    told = {"unit": "ms", "next": {"cheaper": point, "better": None}}
    result = {"explanation": told, "constraints": {}, "cache": {"labels": "final"}}
    assert explanation_lines(result) == [
        "On the front, the next cheaper has 2.00 ms and 0.9000 mIoU against the final exit, error "
        "against the final exit 0.1000 (p1 + final)."
    ]
