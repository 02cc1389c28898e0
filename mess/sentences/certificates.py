"""What is promised of new images, and on what it rests."""

from __future__ import annotations

from typing import Any

from mess.search.guarantees.groups import STRONG
from mess.search.guarantees.methods import CROSS, FRESH, SPLIT
from mess.sentences.figures import amount, counted, with_interval
from mess.sentences.intervals import rare_lines
from mess.sentences.near_identical import near_identical_lines

_UNITS = {"latency": "ms", "macs": "MACs", "params": "parameters"}


def certificate_lines(certificate: dict[str, Any]) -> list[str]:
    """What a certificate promises, and how many images would certify something cheaper."""
    unit, groups = _UNITS[certificate["metric"]], certificate["groups"]
    lines = [_verdict(certificate, unit)]
    if "lost" in certificate:
        unit_of_mean = "an image" if groups == certificate["images"] else "a group's images"
        lines.append(
            "Lost pixels are those that the whole network gets right and the answer wrong, as a "
            f"share of the labelled pixels of {unit_of_mean}, on average."
        )
    if certificate["strength"] == "weak":
        lines.append(_weakness(groups))
    lines += _rare_in_certificate(certificate)
    if not certificate["holds"] and certificate["margin"] is None:
        lines.append("Not even the whole network keeps every limit for certain.")
    # The searches of one comparison use the images together, as it says of all of them.
    asked = certificate.get("confidence_together", certificate["confidence"])
    lines += _spent_lines(asked, certificate.get("confidence_on_images", 1.0))
    return lines + _cheaper_lines(certificate, unit)


def _verdict(certificate: dict[str, Any], unit: str) -> str:
    """What is certified, from which images, and what it costs to have it certified."""
    at, images = f"{100 * certificate['confidence']:g}%", counted(certificate)
    how = {
        CROSS: "each left out of the search that it judged",
        FRESH: "which no search saw",
        SPLIT: f"left out of the search of {certificate.get('searched')} others",
    }[certificate["method"]]
    without = "" if certificate["margin"] == 0 else _without(certificate, unit)
    if certificate["margin"] is None:
        nothing = "Nothing but the whole network can be certified"
        # Where no limit is asked for, this is what the certificate is for.
        least = "" if certificate["limits"] else f"; mIoU at least {certificate['least_miou']:.4f}"
        return f"{nothing} at {at} from {images}, {how}{least}.{without}"
    if not certificate["holds"]:
        return (
            f"Nothing that keeps the limits on cost can be certified at {at} from {images}, {how}; "
            f"this is what loses least: {_bounds(certificate)}.{without}"
        )
    bounds = _bounds(certificate) or f"mIoU at least {certificate['least_miou']:.4f}"
    expected = f"expected error {with_interval(certificate['error'])}"
    if lost := certificate.get("lost"):
        expected += f", lost pixels {lost['value']:.4f}"
    return (
        f"Certified at {at} for images like these: {bounds}. From {images}, {how}; "
        f"{expected}.{without}"
    )


def _cheaper_lines(certificate: dict[str, Any], unit: str) -> list[str]:
    """How many images would certify something cheaper, where any number would."""
    if needed := certificate["images_needed"]:
        offers = ", ".join(
            f"{amount(offer['cost'], unit)} from about {offer['images']:,}" for offer in needed
        )
        in_all = ", the searched half included" if certificate["method"] == SPLIT else ""
        return [f"More images like these would certify cheaper answers: {offers}{in_all}."]
    if "lost" in certificate and certificate["margin"] is None:
        return ["More images like these would certify nothing cheaper, either."]
    return []


def certified_lines(report: dict[str, Any]) -> list[str]:
    """What `mess certify` found of each bundle, and what its images have been used for."""
    lines = []
    for told in report["tested"]:
        confidence = f"{100 * told['confidence']:g}%"
        images, groups = counted(told), told["groups"]
        verdict = (
            f"Certified at {confidence}" if told["holds"] else f"Not certified at {confidence}"
        )
        saved = told["whole_cost"] / told["cost"]["value"]
        lines.append(
            f"{verdict}: {_bounds(told)}. Run on {images} that chose nothing; error "
            f"{with_interval(told['error'])}, {saved:.2f}x fewer MACs. Bundle: {told['bundle']}"
        )
        if told["strength"] == "weak":
            lines.append(_weakness(groups))
        lines += _rare_in_certificate(told)
    lines += _spent_lines(report["tested"][0]["confidence"], report["confidence_together"])
    return lines + near_identical_lines(report, report["images"])


def _spent_lines(confidence: float, together: float) -> list[str]:
    """What the images have been used for besides, where it was for anything."""
    # A sum of tenths is none of them to the last digit.
    if together >= confidence - 1e-9:
        return []
    return [
        "These images have certified before: all that rests on them holds together at "
        f"{100 * together:.4g}%."
    ]


def _weakness(groups: int) -> str:
    if groups < STRONG:
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
    costs = f"costs {amount(naive['cost']['value'], unit)}, and"
    if lost := certificate.get("lost"):
        return (
            f" What keeps the limits where it was searched {costs} on these its lost pixels are "
            f"{lost['uncertified']:.4f}."
        )
    return (
        f" Without --confidence the answer {costs} is expected to lose "
        f"{with_interval(naive['error'])} on new images."
    )


def _rare_in_certificate(told: dict[str, Any]) -> list[str]:
    # Those of earlier versions name none.
    names, limits = told.get("rare_classes", ()), told["limits"]
    if limits and all("max_lost" in limit for limit in limits):
        return rare_lines(names, "the certificate counts their pixels with all others")
    return rare_lines(names, "the certificate is of the mean over all classes")


def _at_checkpoint(limit: dict[str, Any]) -> str:
    return "" if limit["checkpoint"] is None else f" by checkpoint {limit['checkpoint'] + 1}"
