"""What a search says about its answer, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from mess.cli import progress
from mess.cli.tables import print_policies, print_search
from mess.sentences.explanation import explanation_lines
from mess.sentences.intervals import against_best_lines, interval_lines
from mess.sentences.new_images import new_images_lines

CHOSEN = {"exits": ["p1-a", "final"], "miou": 0.56, "error": 0.02, "cost": 7.84}


def result(**changes: Any) -> dict[str, Any]:
    """A result as `workflow.search` returns it."""
    figures = {"miou": 0.57, "macs": 4e8, "latency_ms": 9.02, "params": 1000}
    explanation = {
        "metric": "latency",
        "unit": "ms",
        "binding": ["max_error"],
        "buys": [
            {
                "request": {"max_error": 0.02},
                "step": 0.01,
                "unit": "mIoU",
                "changes": "cost",
                "from": 9.02,
                "to": 7.84,
                "gain": 1.18,
                "share": 0.131,
                "configuration": CHOSEN,
            },
            {
                "request": {"target": "accuracy", "max_latency_ms": 10.02},
                "step": 1.0,
                "unit": "ms",
                "changes": "miou",
                "from": 0.57,
                "to": 0.5751,
                "gain": 0.0051,
                "share": None,
                "configuration": CHOSEN | {"miou": 0.5751},
            },
        ],
        "next": {"cheaper": CHOSEN, "better": None},
    }
    return {
        "setting": "input-dependent",
        "constraints": {"max_error": 0.01, "checkpoints": [[5.0, 0.6], [9.0, 0.7]]},
        "exits": [{"exit_id": "final", "signal": None, "threshold": None, "exit_rate": 1.0}],
        "predicted": figures,
        "baseline": figures,
        "error": 0.01,
        "search": {"optimal": True, "configurations": 9, "seconds": 2.0, "source": None},
        "explanation": explanation | changes,
        "path": "searches/this",
    }


def test_three_lines_for_limit_purchases_and_neighbours() -> None:
    assert explanation_lines(result()) == [
        "Held back by --max-error 0.01. 0.01 less mIoU (--max-error 0.02) saves 1.18 ms (13%): "
        "9.02 ms -> 7.84 ms, p1-a + final.",
        "1 ms more (--target accuracy --max-latency 10.02) buys 0.0051 mIoU: 0.5700 -> 0.5751, "
        "p1-a + final.",
        "On the front, the next cheaper has 7.84 ms and 0.5600 mIoU, error 0.0200 (p1-a + final).",
    ]


def test_steps_that_buy_nothing_and_units_of_other_metrics() -> None:
    offer = result()["explanation"]["buys"][1] | {"request": None, "step": 14.5e6, "gain": 0.0}
    assert explanation_lines(result(unit="MACs", buys=[offer], binding=[], next={})) == [
        "14.5 M MACs more buys nothing."
    ]


def test_checkpoints_are_named_as_options() -> None:
    told = result(binding=["checkpoints[1]", "max_error"], buys=[], next={}) | {
        "setting": "anytime"
    }
    assert explanation_lines(told) == ["Held back by --checkpoint 9=0.7 and by --max-error 0.01."]


@pytest.mark.parametrize("explanation", [None, {}, {"binding": []}])
def test_without_an_explanation_nothing_is_said(explanation: dict[str, Any] | None) -> None:
    assert explanation_lines(result() | {"explanation": explanation}) == []


def test_where_an_answer_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    told = result()
    print_search(told)
    assert "among 9 configurations in 2.0 s; error" in capsys.readouterr().out
    told["search"]["source"] = "that"
    print_search(told)
    assert "among 9 configurations, read off the front of that; error" in capsys.readouterr().out


def test_a_sampled_answer_claims_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    told = result()
    told["search"] |= {"optimal": False, "gap": None, "evaluated": 2000}
    print_search(told)
    assert "best of 2,000 trials, not proven, among 9 configurations" in capsys.readouterr().out


def policies(*names: str) -> dict[str, Any]:
    figures = {"miou": 0.57, "macs": 4e8, "latency_ms": None, "params": 1000}
    rows = [
        {
            "policy": name,
            "shared_threshold": True,
            "search": name,
            "exits": ["final"],
            "predicted": figures,
            "failure_prediction": None,
            "optimal": True,
        }
        for name in names
    ]
    rows.append({"policy": "vi", "shared_threshold": False, "infeasible": "no label maps"})
    about = {"images": 40, "groups": 40, "strength": "full", "reason": None, "rare": []}
    return {
        "policies": rows,
        "baseline": figures,
        "best": names[0],
        "path": "comparisons/this",
        "intervals": about,
    }


def test_names_of_policies_are_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = ("share-entropy-plain", "share-entropy-edges")
    print_policies(policies(*names))
    told = capsys.readouterr().out
    first_column = "".join(line.split("│")[1].strip() for line in told.splitlines() if "│" in line)
    assert all(name in first_column for name in names)
    assert "vi: no label maps" in told


def test_where_nothing_can_be_drawn_long_tasks_say_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 29.0, 60.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    # An earlier command did 10 steps, which tell nothing of the pace of this one.
    with progress.reporter() as reporter, reporter.task("stage 1", 500, 10) as task:
        reporter.message("begun")
        task.advance(2, loss=0.75)
        task.advance(3, loss=0.5)
        task.advance(245, loss=0.25)
    assert capsys.readouterr().err.splitlines() == [
        "begun",
        "stage 1: 15 of 500 loss 0.5000, 1.6 h left",
        "stage 1: 260 of 500 loss 0.2500, 2 min left",
    ]


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def certificate(**changes: Any) -> dict[str, Any]:
    """Of a result as `workflow.search` returns it."""
    return {
        "method": "cross",
        "confidence": 0.95,
        "strength": "full",
        "holds": True,
        "limits": [{"max_error": 0.01, "checkpoint": None}],
        "bounds": [0.0093],
        "least_miou": 0.4,
        "margin": 0.008,
        "metric": "latency",
        "error": interval(0.0036, -0.0033, 0.0104),
        "miou": interval(0.46, 0.43, 0.48),
        "cost": interval(2.33, 2.25, 2.42),
        "uncertified": {
            "error": interval(0.0166, 0.0077, 0.0255),
            "cost": interval(1.98, 1.91, 2.06),
        },
        "images": 240,
        "groups": 240,
        "images_needed": [{"cost": 2.28, "images": 1250}],
    } | changes


def test_a_certificate_in_sentences() -> None:
    assert new_images_lines({"certificate": certificate()}) == [
        "Certified at 95% for images like these: error at most 0.0093 (asked 0.01). From 240 "
        "images, each left out of the search that it judged; expected error 0.0036 (-0.0033 to "
        "0.0104). Without --confidence the answer costs 1.98 ms, and is expected to lose 0.0166 "
        "(0.0077 to 0.0255) on new images.",
        "More images like these would certify cheaper answers: 2.28 ms from about 1,250.",
    ]
    # What has no margin is what a search without a confidence answers.
    (line,) = new_images_lines({"certificate": certificate(margin=0.0, images_needed=[])})
    assert "Without --confidence" not in line


def test_a_weak_certificate_from_fresh_images_at_checkpoints() -> None:
    limits = [{"max_error": 0.01, "checkpoint": None}, {"min_miou": 0.4, "checkpoint": 1}]
    told = certificate(
        method="fresh", limits=limits, bounds=[0.005, 0.41], strength="weak", groups=9, margin=0.0
    )
    first, second, _ = new_images_lines({"certificate": told})
    assert "error at most 0.0050 (asked 0.01) and mIoU at least 0.4100 by checkpoint 2" in first
    assert "From 240 images in 9 groups, which no search saw" in first
    assert second == "The certificate is weak: 9 groups tell little about others."


def lost_certificate(**changes: Any) -> dict[str, Any]:
    return (
        certificate(
            method="split",
            limits=[{"max_lost": 0.02, "checkpoint": None}],
            bounds=[0.0173],
            lost={"value": 0.0101, "hoeffding_bentkus": 0.0432, "uncertified": 0.0251},
            images=120,
            groups=120,
            searched=121,
        )
        | changes
    )


WHAT_IS_LOST = (
    "Lost pixels are those that the whole network gets right and the answer wrong, as a share of "
    "the labelled pixels of an image, on average."
)


def test_lost_pixels_in_sentences() -> None:
    assert new_images_lines({"certificate": lost_certificate()}) == [
        "Certified at 95% for images like these: lost pixels at most 0.02 (bound 0.0173). From 120 "
        "images, left out of the search of 121 others; expected error 0.0036 (-0.0033 to 0.0104), "
        "lost pixels 0.0101. What keeps the limits where it was searched costs 1.98 ms, and on "
        "these its lost pixels are 0.0251.",
        WHAT_IS_LOST,
        "More images like these would certify cheaper answers: 2.28 ms from about 1,250, the "
        "searched half included.",
    ]
    limits = [{"max_error": 0.01, "checkpoint": None}, {"max_lost": 0.02, "checkpoint": None}]
    both = lost_certificate(
        method="fresh", limits=limits, bounds=[0.0093, 0.0173], groups=30, margin=0.0
    )
    first, second, third = new_images_lines({"certificate": both})
    assert "error at most 0.0093 (asked 0.01) and lost pixels at most 0.02 (bound" in first
    assert "From 120 images in 30 groups, which no search saw" in first
    assert first.endswith("lost pixels 0.0101.")
    assert second == WHAT_IS_LOST.replace("an image", "a group's images")
    assert third.endswith("from about 1,250.")


def test_where_nothing_cheaper_loses_as_little() -> None:
    told = lost_certificate(margin=None, images_needed=[])
    assert new_images_lines({"certificate": told}) == [
        "Nothing but the whole network can be certified at 95% from 120 images, left out of the "
        "search of 121 others. What keeps the limits where it was searched costs 1.98 ms, and on "
        "these its lost pixels are 0.0251.",
        WHAT_IS_LOST,
        "More images like these would certify nothing cheaper, either.",
    ]


def test_a_certified_answer_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    told = result() | {"target": "macs", "certificate": lost_certificate()}
    told["search"] |= {"optimal": False, "gap": None}
    print_search(told)
    words = " ".join(capsys.readouterr().out.split())
    assert "the cheapest that is certified among 9 configurations" in words
    print_search(told | {"target": "accuracy"})
    words = " ".join(capsys.readouterr().out.split())
    assert "the most accurate that is certified among 9 configurations" in words


def test_where_only_the_whole_network_holds() -> None:
    lines = new_images_lines({"certificate": certificate(margin=None, holds=False)})
    assert lines[0].startswith("Nothing but the whole network can be certified at 95% from 240")
    assert lines[1] == "Not even the whole network keeps every limit for certain."


def test_the_least_miou_is_told_of_the_whole_network_too() -> None:
    told = certificate(margin=None, limits=[], bounds=[])
    assert (
        "at 95% from 240 images, each left out of the search that it judged; mIoU at least "
        in (new_images_lines({"certificate": told})[0])
    )


def test_what_to_expect_in_a_sentence() -> None:
    expected = {
        "error": interval(0.0176, 0.0075, 0.0277),
        "metric": "macs",
        "confidence": 0.95,
        "saving_kept": 0.9,
        "images": 240,
    }
    assert new_images_lines({"expected": expected}) == [
        "On new images like these 240 expect an error of 0.0176 (0.0075 to 0.0277). To hold the "
        "limits there, too, add --confidence 0.95; that would keep 90% of the saving."
    ]
    (line,) = new_images_lines({"expected": expected | {"saving_kept": None}})
    assert line.endswith("add --confidence 0.95.")
    (line,) = new_images_lines({})
    assert "--expect tells how much, --confidence 0.95 keeps the limits there" in line


def intervals(**changes: Any) -> dict[str, Any]:
    """Of a report as `workflow.evaluate` returns it."""
    return {
        "confidence": 0.95,
        "images": 240,
        "groups": 24,
        "strength": "full",
        "reason": None,
        "searched": 0,
        "rare": [],
        "miou": interval(0.4613, 0.4312, 0.4901),
        "error": interval(0.0084, 0.0021, 0.0143),
        "macs": interval(2.5e8, 2.4e8, 2.6e8),
        "latency_ms": interval(2.33, 2.25, 2.42),
        "exit_rates": [None, interval(0.75, 0.6, 0.8625), interval(0.25, 0.1375, 0.4)],
    } | changes


def test_intervals_are_told_with_what_they_rest_on() -> None:
    assert interval_lines(intervals()) == [
        "On all images like these 240 images in 24 groups, at 95%: mIoU 0.4613 (0.4312 to 0.4901), "
        "error 0.0084 (0.0021 to 0.0143), 250.0 M MACs (240.0 to 260.0), 2.33 ms "
        "(2.25 to 2.42), exit rates 75.0% (60.0 to 86.2), 25.0% (13.8 to 40.0)."
    ]
    told = interval_lines(intervals(strength="weak", groups=8, rare=["bus", "train"], searched=12))
    assert told[1:] == [
        "The intervals are weak: 8 groups tell little about others.",
        "Too rare to promise anything about: bus, train; mIoU and error here leave them out.",
        "12 of these 240 images chose the instance: on others it loses more.",
    ]
    skewed = interval_lines(intervals(skewed=True))
    assert skewed[1].startswith("The error's interval is weak: most of what is lost lies in few")
    # Where every class is rare, and all images cost the same.
    nothing = intervals(miou=None, error=None, exit_rates=[], macs=interval(1e6, 1e6, 1e6))
    assert interval_lines(nothing)[0].endswith("at 95%: 2.33 ms (2.25 to 2.42).")
    reason = {"strength": None, "reason": "24 images in 4 groups are too few"}
    assert interval_lines(reason) == ["No intervals: 24 images in 4 groups are too few"]


def test_rare_classes_stand_with_a_certificate() -> None:
    told = new_images_lines({"certificate": certificate(rare_classes=["bus"])})
    assert (
        "Too rare to promise anything about: bus; the certificate is of the mean over all classes."
        in told
    )
    # A limit on accuracy beside lost pixels is of the mean, these alone are of pixels.
    (limit,) = certificate()["limits"]
    both = lost_certificate(
        rare_classes=["bus"], limits=[limit, *lost_certificate()["limits"]], bounds=[0.009, 0.017]
    )
    assert any(
        "bus; the certificate is of the mean" in s for s in new_images_lines({"certificate": both})
    )
    alone = lost_certificate(rare_classes=["bus"])
    told = new_images_lines({"certificate": alone})
    counted = "the certificate counts their pixels with all others."
    assert f"Too rare to promise anything about: bus; {counted}" in told
    # That of an earlier version names none.
    assert not any("rare" in line for line in new_images_lines({"certificate": certificate()}))


def test_policies_are_held_against_the_best() -> None:
    comparison = policies("share", "ne")
    paired = {"error": interval(0.0012, -0.001, 0.0034), "macs": interval(3.1e6, 1e6, 5.2e6)}
    comparison["policies"][1]["against_best"] = paired
    comparison["intervals"]["rare"] = ["bus"]
    assert against_best_lines(comparison) == [
        "Against * on the same 40 images (95%, not corrected for having searched):",
        "  ne, one threshold: 3.1 M MACs more (1.0 to 5.2), 0.0012 (-0.0010 to 0.0034) mIoU lost.",
        "Too rare to promise anything about: bus; mIoU here leaves them out.",
    ]
    comparison["intervals"] = {"strength": None, "reason": "one group"}
    assert against_best_lines(comparison) == ["No intervals: one group"]
