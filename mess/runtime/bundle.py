"""Running a bundle: numpy and one runtime; onnxruntime by default, no torch.

A bundle is a folder with manifest.json, one program a segment and one that turns logits into the
label map. Segment programs take features of the segments before (the first the image) and give
those that later ones need, the logits and, where an image may leave, the signal. Where a signal
compares two exits, the first one's program gives its label map too, and the second one's takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.files import sha256
from mess.common.images import read_image, resize_image
from mess.errors import BundleError, MessError
from mess.runtime.manifest import (
    BundleExit,
    Manifest,
    RunManifest,
    checked_manifest,
    normalisation_of,
    read_manifest,
)
from mess.runtime.program import Program
from mess.runtime.registry import runtime_of
from mess.signals.decision import leaves


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The label map of the exit that answered, and what made the image leave there."""

    label_map: NDArray[np.uint8]
    """(H, W) class ids at the bundle's input size, whatever the size of the image was."""
    exit_id: str
    exit_index: int
    """0-based, in order of depth."""
    signal: float | None
    """None at an exit without one, such as the last."""


_NEXT = "next_"
"""Before the name, in its outputs, of what a program gives to later ones."""


class _Found(NamedTuple):
    """What a segment gave; `alive` is what later ones may take, by the names of their inputs."""

    logits: Any
    signal: float | None
    alive: dict[str, Any]


class Bundle:
    """An exported instance, ready to run; made by `load_bundle`.

    Calling it answers one image the way the bundle's setting asks for: an input-dependent instance
    stops at the first exit whose signal reaches its threshold, every other runs to its last exit.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int) -> None:
        self.path = path
        self.manifest = manifest
        height, width = manifest["input"]["size"]
        self.size = height, width
        self.normalisation = normalisation_of(manifest, path)
        program = _program(path, manifest["format"])
        self._exits = manifest["exits"]
        self._inputs = _inputs_of(self._exits)
        self._segments = [program(path / exit_["segment"], threads) for exit_ in self._exits]
        # Exits with logits of one size share a program.
        self._answers = {
            name: program(path / name, threads) for name in {e["answer"] for e in self._exits}
        }

    @property
    def facts(self) -> RunManifest:
        """The manifest with what `mess export` tells of the run; BundleError where it does not."""
        return checked_manifest(self.manifest, self.path, RunManifest)

    def __call__(self, image: Path | str | NDArray[np.uint8]) -> Answer:
        """Answer one image: a path, or RGB of any size, (H, W, 3) uint8."""
        return self.answer(self.preprocess(image))

    def preprocess(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rescale to the bundle's size and normalise; (3, H, W) float32."""
        array = read_image(Path(image)) if isinstance(image, str | Path) else image
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise BundleError(
                f"an image is RGB of shape (H, W, 3), uint8; got {array.shape}, {array.dtype}."
            )
        return self.normalisation.apply(resize_image(array, self.size))

    def answer(self, image_3HW: NDArray[np.float32], *, until: int | None = None) -> Answer:
        """Answer one normalised image of shape (3, H, W): what a latency measures.

        `until` (0-based) makes that exit answer if none before it did: an anytime instance whose
        deadline is known.
        """
        last = len(self._exits) - 1 if until is None else until
        alive = self._start(image_3HW)
        for index in range(last):
            found = self._segment(index, alive)
            if self._leaves(index, found.signal):
                return self._answer(index, found)
            alive = found.alive
        return self._answer(last, self._segment(last, alive))

    def stream(self, image: Path | str | NDArray[np.uint8]) -> Iterator[Answer]:
        """Every exit's answer in turn, each as soon as it is there (anytime inference)."""
        alive = self._start(self.preprocess(image))
        for index in range(len(self._exits)):
            found = self._segment(index, alive)
            yield self._answer(index, found)
            alive = found.alive

    def _leaves(self, index: int, signal: float | None) -> bool:
        threshold = self._exits[index]["threshold"]
        return signal is not None and threshold is not None and bool(leaves(signal, threshold))

    def _start(self, image_3HW: NDArray[np.float32]) -> dict[str, Any]:
        if image_3HW.shape != (3, *self.size):
            raise BundleError(
                f"the bundle takes images of shape {(3, *self.size)}, got {image_3HW.shape}."
            )
        # Programs were written for batch 1.
        return {self._inputs[0][0]: self._segments[0].to_value(image_3HW[None])}

    def _segment(self, index: int, alive: Mapping[str, Any]) -> _Found:
        program = self._segments[index]
        # By the names in the manifest: what one segment gives depends on what later ones take.
        values = program(*(alive[name] for name in self._inputs[index]))
        outputs = dict(zip(self._exits[index]["outputs"], values, strict=True))
        signal = outputs.get("signal")
        given = {
            name.removeprefix(_NEXT): value
            for name, value in outputs.items()
            if name.startswith(_NEXT)
        }
        if "labels" in outputs:
            given["previous_labels"] = outputs["labels"]
        later = {name for names in self._inputs[index + 1 :] for name in names}
        return _Found(
            logits=outputs["logits"],
            signal=None if signal is None else float(program.to_array(signal)[0]),
            # Features that only a later segment reads are kept for it, others let go.
            alive={name: value for name, value in {**alive, **given}.items() if name in later},
        )

    def _answer(self, index: int, found: _Found) -> Answer:
        program = self._answers[self._exits[index]["answer"]]
        label_map = program.to_array(program(found.logits)[0])[0]
        return Answer(
            label_map=label_map,
            exit_id=self._exits[index]["exit_id"],
            exit_index=index,
            signal=found.signal,
        )


def load_bundle(path: Path | str, *, threads: int = 1) -> Bundle:
    """Load a bundle after checking that no file of it was altered.

    `threads` is the number of threads within an operator; the predicted latencies hold for the
    number they were measured with. Raises BundleError that names the file at fault.
    """
    path = Path(path)
    manifest = read_manifest(path, Manifest)
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path} lacks {name}. Export it again.")
        if sha256(file) != digest:
            raise BundleError(f"bundle file {file} was altered after its export. Export it again.")
    return Bundle(path, manifest, threads)


def _inputs_of(exits: Sequence[BundleExit]) -> list[list[str]]:
    """Names of what the program of each exit takes."""
    names = []
    compares = False
    for exit_ in exits:
        # Version 1 had chains alone, and did not name what they take.
        chain = ["features", "previous_labels"] if compares else ["features"]
        names.append(exit_.get("inputs", chain))
        compares = "labels" in exit_["outputs"]
    return names


def _program(path: Path, format_: str) -> type[Program]:
    try:
        return runtime_of(format_).load()
    except MessError as error:
        raise BundleError(f"bundle {path} cannot be run: {error}") from error
