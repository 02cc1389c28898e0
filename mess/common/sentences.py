"""What the result of a search says, in sentences: for the terminal and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mess.common.metrics import MASKS

_STRONG = 20
"""Groups from which on a certificate is not weak for being of few."""

_ACCURACY = re.compile(r"(?<![\w-])(mIoU|IoU|error)(?![\w-])(?! against the final exit)")
"""The words for what is measured, and no option such as --max-error."""


def against(text: str, labels: str) -> str:
    """A text in which no mIoU and no error stands alone that is not against masks.

    labels: what was counted against, `masks` or the exit whose label maps are in their place.
    Without masks a figure of 1 says that an instance answers as the whole network does, and nothing
    of how good either is: whoever reads one must not take it for accuracy.
    """
    return text if labels == MASKS else _ACCURACY.sub(rf"\1 against the {labels} exit", text)


def labels_of(result: Mapping[str, Any]) -> str:
    """What the accuracy in a search's result is measured against: `masks`, or an exit."""
    return result.get("cache", {}).get("labels", MASKS)


def new_images_lines(result: dict[str, Any]) -> list[str]:
    """What is promised, or expected, of new images, or how to have it told."""
    return [against(line, labels_of(result)) for line in _new_images_lines(result)]


def _new_images_lines(result: dict[str, Any]) -> list[str]:
    if certificate := result.get("certificate"):
        lines = _certificate_lines(certificate, _UNITS[certificate["metric"]])
        lines += _compared_lines(certificate)
        return [*lines, *near_identical_lines(certificate, certificate["images"])]
    if not (expected := result.get("expected")):
        return [
            "All this is of the images that were searched, and new ones lose more: --expect tells "
            f"how much, --confidence 0.95 keeps the limits there.{_searched_interval(result)}"
        ]
    kept, error = expected["saving_kept"], _range(expected["error"])
    together = expected.get("confidence_together", expected["confidence"])
    keeps = "" if kept is None else f"; that would keep {100 * max(0.0, kept):.0f}% of the saving"
    return [
        f"On new images like these {expected['images']} expect an error of {error}. To hold the "
        f"limits there, too, add --confidence {together:g}{keeps}.",
        *_compared_lines(expected),
        *near_identical_lines(expected, expected["images"]),
    ]


def _compared_lines(told: dict[str, Any]) -> list[str]:
    """Where one of several answers is taken: what holds for whichever it is."""
    if "compared" not in told:
        return []
    each, together = (f"{100 * told[k]:.4g}%" for k in ("confidence", "confidence_together"))
    return [
        f"Each of {told['compared']} searches that were compared is told at {each}, so that all "
        f"hold together at {together}, whichever is taken."
    ]


def near_identical_lines(told: dict[str, Any], images: int) -> list[str]:
    """What `near_identical` and `near_searched` of some images warn of."""
    lines = []
    if (found := told.get("near_identical")) and found["images"]:
        suggested = "data.groups says which belong together"
        if found["suggested"] is not None:
            groups = f"{found['groups']} group{'s' if found['groups'] != 1 else ''}"
            suggested = f"data.groups = {found['suggested']!r} would make {groups} of all images"
        lines.append(
            f"{_count_of(found, images)} nearly identical to one of another group, such as "
            f"{' and '.join(found['pair'])}. Frames of a video tell hardly more than one of them, "
            f"so they say less of new images than their number does. {suggested}; set it in the "
            "run's config.toml."
        )
    if (found := told.get("near_searched")) and found["images"]:
        lines.append(
            f"{_count_of(found, images)} nearly identical to one that was searched, such as "
            f"{' and '.join(found['pair'])}. They judge what they all but chose: certify on images "
            "of other scenes."
        )
    return lines


def _count_of(found: dict[str, Any], images: int) -> str:
    return f"{found['images']} of {images} images {'is' if found['images'] == 1 else 'are'}"


def _searched_interval(result: dict[str, Any]) -> str:
    """How far the error is known at all; nothing where there is no interval."""
    intervals = result.get("intervals") or {}
    error = intervals.get("error")
    if error is None or error["low"] == error["high"]:
        return ""
    return (
        f" That there are {_images(intervals)} alone leaves the error between {error['low']:.4f} "
        f"and {error['high']:.4f} (95%, not corrected for having searched)."
    )


def interval_lines(intervals: dict[str, Any]) -> list[str]:
    """What figures of some images tell of all images like them."""
    if intervals["strength"] is None:
        return [f"No intervals: {intervals['reason']}"]
    figures = [
        f"{name} {_range(figure)}"
        for name, figure in (("mIoU", intervals["miou"]), ("error", intervals["error"]))
        if figure is not None
    ]
    figures += [
        f"{_amount(figure['value'], unit)} {_ends(figure, unit)}"
        for name, unit in (("macs", "MACs"), ("latency_ms", "ms"))
        # Where every image takes the same way it costs the same, too.
        if (figure := intervals.get(name)) and figure["low"] < figure["high"]
    ]
    rates = [
        f"{100 * rate['value']:.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
        for rate in intervals["exit_rates"]
        if rate is not None
    ]
    figures += [f"exit rates {', '.join(rates)}"] * bool(rates)
    confidence = f"{100 * intervals['confidence']:g}%"
    lines = [
        f"On all images like these {_images(intervals)}, at {confidence}: {', '.join(figures)}."
    ]
    lines += _weak(intervals) + rare_lines(intervals["rare"], "mIoU and error here leave them out")
    if intervals["searched"]:
        lines.append(
            f"{intervals['searched']} of these {intervals['images']} images chose the instance: on "
            "others it loses more."
        )
    return lines


def rare_lines(names: Sequence[str], consequence: str) -> list[str]:
    """The classes that too few groups have to say anything about."""
    if not names:
        return []
    return [f"Too rare to promise anything about: {', '.join(names)}; {consequence}."]


def against_best_lines(comparison: dict[str, Any]) -> list[str]:
    """Which policies cost or lose more than the best one, and which cannot be told from it."""
    intervals = comparison["intervals"]
    if intervals["strength"] is None:
        return [f"No intervals: {intervals['reason']}"]
    rows = [row for row in comparison["policies"] if "against_best" in row]
    if not rows:
        return []
    lines = [
        f"Against * on the same {_images(intervals)} (95%, not corrected for having searched):"
    ]
    for row in rows:
        paired, figures = row["against_best"], []
        for key, unit in (("latency_ms", "ms"), ("macs", "MACs")):
            if figure := paired.get(key):
                figures.append(f"{_amount(figure['value'], unit)} more {_ends(figure, unit)}")
        if paired["error"] is not None:
            figures.append(f"{_range(paired['error'])} mIoU lost")
        lines.append(f"  {policy_name(row)}: {', '.join(figures)}.")
    return lines + _weak(intervals) + rare_lines(intervals["rare"], "mIoU here leaves them out")


def policy_name(row: Mapping[str, Any]) -> str:
    """A policy of a comparison, and whether its exits share a threshold."""
    return f"{row['policy']}{', one threshold' * row['shared_threshold']}"


def _images(told: dict[str, Any]) -> str:
    count, groups = told["images"], told["groups"]
    return f"{count} images" if groups == count else f"{count} images in {groups} groups"


def _weak(intervals: dict[str, Any]) -> list[str]:
    if intervals["strength"] != "weak":
        return []
    return [f"The intervals are weak: {intervals['groups']} groups tell little about others."]


def _certificate_lines(certificate: dict[str, Any], unit: str) -> list[str]:
    confidence = f"{100 * certificate['confidence']:g}%"
    images, lost = _images(certificate), certificate.get("lost")
    count, groups = certificate["images"], certificate["groups"]
    how = {
        "cross": "each left out of the search that it judged",
        "fresh": "which no search saw",
        "split": f"left out of the search of {certificate.get('searched')} others",
    }[certificate["method"]]
    without = "" if certificate["margin"] == 0 else _without(certificate, unit)
    if certificate["margin"] is None:
        nothing = "Nothing but the whole network can be certified"
        lines = [f"{nothing} at {confidence} from {images}, {how}.{without}"]
    elif not certificate["holds"]:
        lines = [
            f"Nothing that keeps the limits on cost can be certified at {confidence} from "
            f"{images}, {how}; this is what loses least: {_bounds(certificate)}.{without}"
        ]
    else:
        bounds = _bounds(certificate) or f"mIoU at least {certificate['least_miou']:.4f}"
        expected = f"expected error {_range(certificate['error'])}"
        if lost:
            expected += f", lost pixels {lost['value']:.4f}"
        lines = [
            f"Certified at {confidence} for images like these: {bounds}. From {images}, {how}; "
            f"{expected}.{without}"
        ]
    if lost:
        unit_of_mean = "an image" if groups == count else "a group's images"
        lines.append(
            "Lost pixels are those that the whole network gets right and the answer wrong, as a "
            f"share of the labelled pixels of {unit_of_mean}, on average."
        )
    if certificate["strength"] == "weak":
        lines.append(_weakness(groups))
    lines += _rare_in_certificate(certificate)
    if not certificate["holds"] and certificate["margin"] is None:
        lines.append("Not even the whole network keeps every limit for certain.")
    if needed := certificate["images_needed"]:
        offers = ", ".join(
            f"{_amount(offer['cost'], unit)} from about {offer['images']:,}" for offer in needed
        )
        in_all = ", the searched half included" if certificate["method"] == "split" else ""
        lines.append(f"More images like these would certify cheaper answers: {offers}{in_all}.")
    elif lost and certificate["margin"] is None:
        lines.append("More images like these would certify nothing cheaper, either.")
    return lines


def certified_lines(report: dict[str, Any]) -> list[str]:
    """What `mess certify` found of each bundle, and what its images have been used for."""
    lines = []
    for told in report["tested"]:
        confidence = f"{100 * told['confidence']:g}%"
        images, groups = _images(told), told["groups"]
        verdict = (
            f"Certified at {confidence}" if told["holds"] else f"Not certified at {confidence}"
        )
        saved = told["whole_cost"] / told["cost"]["value"]
        lines.append(
            f"{verdict}: {_bounds(told)}. Run on {images} that chose nothing; error "
            f"{_range(told['error'])}, {saved:.2f}x fewer MACs. Bundle: {told['bundle']}"
        )
        if told["strength"] == "weak":
            lines.append(_weakness(groups))
        lines += _rare_in_certificate(told)
    together = report["confidence_together"]
    if together < report["tested"][0]["confidence"]:
        lines.append(
            "These images have certified before: all that rests on them holds together at "
            f"{100 * together:.4g}%."
        )
    return lines


def _weakness(groups: int) -> str:
    if groups < _STRONG:
        return f"The certificate is weak: {groups} groups tell little about others."
    return (
        "The certificate is weak: much hangs on few of the images, and such a bound holds somewhat "
        "less often than it says. More images make it stronger."
    )


def _bounds(told: dict[str, Any]) -> str:
    """What each limit's figure is certain to keep, and what was asked."""
    return " and ".join(map(_kept, told["limits"], told["bounds"]))


def _kept(limit: dict[str, Any], bound: float) -> str:
    """A limit that is certified, and its bound."""
    if "max_lost" in limit:
        return f"lost pixels at most {limit['max_lost']:g} (bound {bound:.4f})"
    figure = "error at most" if "max_error" in limit else "mIoU at least"
    asked = limit.get("max_error", limit.get("min_miou"))
    return f"{figure} {bound:.4f}{_at_checkpoint(limit)} (asked {asked:g})"


def _without(certificate: dict[str, Any], unit: str) -> str:
    """What the answer would be if its limits had to hold on the searched images alone."""
    naive = certificate["uncertified"]
    costs = f"costs {_amount(naive['cost']['value'], unit)}, and"
    if lost := certificate.get("lost"):
        return (
            f" What keeps the limits where it was searched {costs} on these its lost pixels are "
            f"{lost['uncertified']:.4f}."
        )
    return (
        f" Without --confidence the answer {costs} is expected to lose {_range(naive['error'])} on "
        "new images."
    )


def _rare_in_certificate(told: dict[str, Any]) -> list[str]:
    # Those of earlier versions name none.
    names, limits = told.get("rare_classes", ()), told["limits"]
    if limits and all("max_lost" in limit for limit in limits):
        return rare_lines(names, "the certificate counts their pixels with all others")
    return rare_lines(names, "the certificate is of the mean over all classes")


def _at_checkpoint(limit: dict[str, Any]) -> str:
    return "" if limit["checkpoint"] is None else f" by checkpoint {limit['checkpoint'] + 1}"


def _range(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"


def explanation_lines(result: dict[str, Any]) -> list[str]:
    """What a search's explanation says, in sentences: limits and purchases, then neighbours."""
    return [against(line, labels_of(result)) for line in _explanation_lines(result)]


def _explanation_lines(result: dict[str, Any]) -> list[str]:
    told, given = result.get("explanation") or {}, result["constraints"]
    miou = "mIoU at the checkpoints" if "checkpoints" in result else "mIoU"
    lines = [_offer(offer, told["unit"], miou) for offer in told.get("buys", ())]
    if told.get("binding"):
        flags = " and by ".join(_flag(name, given) for name in told["binding"])
        binding = f"Held back by {flags}."
        lines[:1] = [f"{binding} {lines[0]}" if lines else binding]
    beside = [
        f"{words} has {_amount(point['cost'], told['unit'])} and {point['miou']:.4f} {miou}, error "
        f"{point['error']:.4f} ({' + '.join(point['exits'])})"
        for side, words in (("cheaper", "the next cheaper"), ("better", "the next more accurate"))
        if (point := told.get("next", {}).get(side))
    ]
    return [*lines, f"On the front, {'; '.join(beside)}."] if beside else lines


def _offer(offer: dict[str, Any], unit: str, miou: str) -> str:
    """One sentence on what a step buys."""
    request = offer["request"]
    asked = f" ({' '.join(_flag(name, request) for name in request)})" if request else ""
    exits = " + ".join(offer["configuration"]["exits"])
    if offer["changes"] == "cost":
        step = f"{offer['step']:g} less {miou}{asked} saves"
        before, after, gain = (_amount(offer[key], unit) for key in ("from", "to", "gain"))
        gain = f"{gain} ({100 * offer['share']:.0f}%)"
    else:
        amount = f"{offer['step']:g} ms" if unit == "ms" else _amount(offer["step"], unit)
        step = f"{amount} more{asked} buys"
        before, after, gain = (f"{offer[key]:.4f}" for key in ("from", "to", "gain"))
        gain = f"{gain} {miou}"
    return f"{step} {gain}: {before} -> {after}, {exits}." if offer["gain"] else f"{step} nothing."


def _flag(name: str, values: dict[str, Any]) -> str:
    """A constraint as the command line takes it; `checkpoints[0]` is one of several."""
    if name.startswith("checkpoints["):
        points = [values["checkpoints"][int(name.removeprefix("checkpoints[").removesuffix("]"))]]
    else:
        points = values["checkpoints"] if name == "checkpoints" else []
    if points:
        return " ".join(f"--checkpoint {cost:.10g}={miou:.6g}" for cost, miou in points)
    value = values[name]
    figure = value if isinstance(value, str) else f"{value:.6g}" if value < 1e5 else f"{value:.0f}"
    return f"--{name.removesuffix('_ms').replace('_', '-')} {figure}"


_UNITS = {"latency": "ms", "macs": "MACs", "params": "parameters"}


def _amount(value: float, unit: str) -> str:
    scale, digits, words = {
        "ms": (1.0, 2, "ms"),
        "MACs": (1e-6, 1, "M MACs"),
        "parameters": (1e-3, 1, "k parameters"),
    }[unit]
    return f"{value * scale:,.{digits}f} {words}"


def _ends(figure: dict[str, float], unit: str) -> str:
    """Both ends of an interval, in the unit that stands before them."""
    low, high = (_amount(figure[end], unit).split(" ")[0] for end in ("low", "high"))
    return f"({low} to {high})"
