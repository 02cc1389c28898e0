"""Why an answer is what it is, and what its limits cost."""

from __future__ import annotations

from typing import Any

from mess.sentences.accuracy import against, labels_of
from mess.sentences.figures import amount


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
        f"{words} has {amount(point['cost'], told['unit'])} and {point['miou']:.4f} {miou}, error "
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
        before, after, gain = (amount(offer[key], unit) for key in ("from", "to", "gain"))
        gain = f"{gain} ({100 * offer['share']:.0f}%)"
    else:
        more = f"{offer['step']:g} ms" if unit == "ms" else amount(offer["step"], unit)
        step = f"{more} more{asked} buys"
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
        costs = ("early" if cost is None else f"{cost:.10g}" for cost, _ in points)
        return " ".join(
            f"--checkpoint {cost}={miou:.6g}" for cost, (_, miou) in zip(costs, points, strict=True)
        )
    value = values[name]
    figure = value if isinstance(value, str) else f"{value:.6g}" if value < 1e5 else f"{value:.0f}"
    return f"--{name.removesuffix('_ms').replace('_', '-')} {figure}"
