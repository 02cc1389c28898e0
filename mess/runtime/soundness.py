"""What a manifest must say for its bundle to be run: ranges, names, and programs that fit together.

All of it is told from the manifest alone, before a file of the bundle is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from mess.runtime.format import (
    LABELS,
    LOGITS,
    MANIFEST,
    NEXT,
    PREVIOUS_LABELS,
    SIGNAL,
    SIGNATURES,
    Histogram,
    Manifest,
    RunManifest,
)

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Of a file of a bundle, on every system: no separators, no drive, nothing hidden."""
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever its suffix."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
"""64 bytes in base64."""

MOST_EXITS = 64
MOST_SIDE = 16_384
MOST_PIXELS = 2**26
"""Of an input: 0.8 GB as float32."""
MOST_CLASSES = 256
"""Label maps are of 8 bits."""
MOST_FILE_BYTES = 2**33
MOST_TEXT = 256
LARGEST = 1e18
"""Of multiply-adds, and of numbers that have no range of their own."""


def faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a manifest of the right types, in words that follow its file's name."""
    for check in (_input, _files, _signature, _exits, _wiring, _histograms):
        yield from check(manifest)


def faults_of_facts(manifest: RunManifest) -> Iterator[str]:
    """The same of what `mess export` tells of the run."""
    classes, palette = manifest["classes"], manifest["palette"]
    yield from _text("setting", manifest["setting"])
    if not 1 <= len(classes) <= MOST_CLASSES:
        yield f"has {len(classes)} classes; they are from 1 to {MOST_CLASSES}"
    for name in classes:
        yield from _text("classes", name)
    if len(palette) != len(classes):
        yield f"has {len(palette)} colours for {len(classes)} classes"
    for color in palette:
        if len(color) != 3 or not all(0 <= value <= 255 for value in color):
            yield f"has the colour {color} in palette; it is three numbers from 0 to 255"
    yield from _within("ignore_index", [manifest["ignore_index"]], 0, 255)
    for key in ("predicted", "baseline"):
        figures = manifest[key]
        yield from _within(f"{key}.miou", [figures["miou"]], 0, 1)
        others = [figures["macs"], figures["params"], figures["latency_ms"] or 0]
        yield from _within(f"{key}", others, 0, LARGEST)


def _input(manifest: Manifest) -> Iterator[str]:
    given = manifest["input"]
    size = given["size"]
    if len(size) != 2 or not all(1 <= side <= MOST_SIDE for side in size):
        yield f"has input.size = {size}; it is height and width from 1 to {MOST_SIDE:,}"
    elif size[0] * size[1] > MOST_PIXELS:
        yield f"has input.size = {size}; it is at most {MOST_PIXELS:,} pixels"
    yield from _within("input.mean", given["mean"], -1e6, 1e6)
    # A smaller one would make infinities of pixels.
    yield from _within("input.std", given["std"], 1e-6, 1e6)
    yield from _within("input.range", [given["range"]], 1e-6, 1e6)


def _files(manifest: Manifest) -> Iterator[str]:
    names = manifest["files"]
    for name, file in names.items():
        if not FILE_NAME.fullmatch(name) or _DEVICE_NAME.fullmatch(name):
            yield (
                f"names the file {name[:MOST_TEXT]!r}; files lie in the bundle's folder, and names "
                "are letters, digits, dots, dashes and underscores"
            )
        if not _SHA256.fullmatch(file["sha256"]):
            yield f"has files.{name}.sha256 = {file['sha256'][:MOST_TEXT]!r}, which is none"
        yield from _within(f"files.{name}.bytes", [file["bytes"]], 1, MOST_FILE_BYTES)
    # One file on systems where case does not count.
    for one, other in pairwise(sorted([*names, MANIFEST], key=str.casefold)):
        if one.casefold() == other.casefold():
            yield f"names both {one} and {other}, which some systems hold for one file"


def _signature(manifest: Manifest) -> Iterator[str]:
    signature = manifest.get("signature")
    if signature is not None and not _SIGNATURE.fullmatch(signature["value"]):
        yield f"has signature.value = {signature['value'][:MOST_TEXT]!r}, which is none"
    if signature is not None and signature["algorithm"] != SIGNATURES:
        algorithm = signature["algorithm"][:MOST_TEXT]
        yield f"has signature.algorithm = {algorithm!r}; it is {SIGNATURES}"


def _exits(manifest: Manifest) -> Iterator[str]:
    exits = manifest["exits"]
    if not 1 <= len(exits) <= MOST_EXITS:
        yield f"has {len(exits)} exits; a bundle has from 1 to {MOST_EXITS}"
    for index, exit_ in enumerate(exits):
        where = f"exits[{index}]"
        yield from _text(f"{where}.exit_id", exit_["exit_id"])
        threshold = 0.0 if exit_["threshold"] is None else exit_["threshold"]
        yield from _within(f"{where}.threshold", [threshold], -LARGEST, LARGEST)
        yield from _within(f"{where}.exit_rate", [exit_["exit_rate"] or 0], 0, 1)
        yield from _within(f"{where}.macs", [exit_["macs"]], 0, LARGEST)
        has_signal = SIGNAL in exit_["outputs"]
        if has_signal != (exit_["signal"] is not None):
            yield f"has {where}.signal = {exit_['signal']} and outputs {exit_['outputs']}"
        if exit_["threshold"] is not None and not has_signal:
            yield f"has {where}.threshold = {threshold:g} and no signal to hold against it"
    yield from _repeated("exit", (exit_["exit_id"] for exit_ in exits))
    used = {exit_[kind] for exit_ in exits for kind in ("segment", "answer")}
    for name in sorted(used ^ set(manifest["files"])):
        what = "runs" if name in used else "holds"
        other = "is not among its files" if name in used else "no exit runs"
        yield f"{what} {name[:MOST_TEXT]!r}, which {other}"


def _wiring(manifest: Manifest) -> Iterator[str]:
    """Whether each program finds what it takes among what those before it gave."""
    exits = manifest["exits"]
    # The image is there for later programs, too, as a network may read it again.
    alive = set(exits[0]["inputs"]) if exits else set[str]()
    for index, exit_ in enumerate(exits):
        where, inputs, outputs = f"exits[{index}]", exit_["inputs"], exit_["outputs"]
        for name in (*inputs, *outputs):
            yield from _text(f"{where}, among what it takes and gives,", name)
        yield from _repeated(f"input of {where}", inputs)
        yield from _repeated(f"output of {where}", outputs)
        if index == 0 and len(inputs) != 1:
            yield f"has exits[0].inputs = {inputs}; the first program takes the image alone"
        if index and not inputs:
            yield f"has no {where}.inputs, so its program would see nothing of the image"
        for name in inputs if index else ():
            if name not in alive:
                yield f"has {name[:MOST_TEXT]!r} in {where}.inputs, which no program before gives"
        if LOGITS not in outputs:
            yield f"has no {LOGITS} in {where}.outputs, and nothing else makes a label map"
        given = {name.removeprefix(NEXT) for name in outputs if name.startswith(NEXT)}
        for name in outputs:
            if name not in (LOGITS, SIGNAL, LABELS) and not name.startswith(NEXT):
                yield f"has {name[:MOST_TEXT]!r} in {where}.outputs, of which nothing is known"
        # Labels are of the exit just before: those of an earlier one are no longer there.
        labels = {PREVIOUS_LABELS} if LABELS in outputs else set()
        alive = (alive - {PREVIOUS_LABELS}) | given | labels


def _histograms(manifest: Manifest) -> Iterator[str]:
    known = {exit_["exit_id"] for exit_ in manifest["exits"]}
    for exit_id, histogram in manifest["histograms"].items():
        if exit_id not in known:
            yield f"has a histogram of {exit_id[:MOST_TEXT]!r}, which is none of its exits"
        yield from _histogram(f"histograms.{exit_id[:MOST_TEXT]}", histogram)


def _histogram(where: str, histogram: Histogram) -> Iterator[str]:
    edges, counts = histogram["edges"], histogram["counts"]
    if len(counts) < 1 or len(edges) != len(counts) + 1:
        yield f"has {len(edges)} {where}.edges for {len(counts)} counts; there is one more"
    if not all(lower < upper for lower, upper in pairwise(edges)):
        yield f"has {where}.edges that do not rise"
    yield from _within(f"{where}.edges", edges, -LARGEST, LARGEST)
    yield from _within(f"{where}.counts", counts, 0, LARGEST)


def _within(where: str, values: Sequence[float], least: float, most: float) -> Iterator[str]:
    for value in values:
        if not least <= value <= most:
            yield f"has {where} = {value!r}; it is from {least:g} to {most:g}"


def _text(where: str, value: str) -> Iterator[str]:
    if not (value.isprintable() and 1 <= len(value) <= MOST_TEXT):
        yield f"has {where} = {value[:MOST_TEXT]!r}; it is 1 to {MOST_TEXT} printable characters"


def _repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    seen = set[str]()
    for name in names:
        if name in seen:
            yield f"has the {what} {name[:MOST_TEXT]!r} twice"
        seen.add(name)
