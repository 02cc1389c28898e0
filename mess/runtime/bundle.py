"""Running a bundle: numpy and one runtime; onnxruntime by default, no torch.

A bundle is a folder with manifest.json, one program a segment and one that turns logits into the
label map. Segment programs take features of the segments before (the first the image) and give
those that later ones need, the logits and, where an image may leave, the signal. Where a signal
compares two exits, the first one's program gives its label map too, and the second one's takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.framing import Frame, stitched
from mess.common.images import read_image
from mess.errors import BundleError, MessError
from mess.runtime.manifest import (
    BundleExit,
    Manifest,
    RunManifest,
    checked_manifest,
    input_of,
    read_manifest,
    require_files,
)
from mess.runtime.program import Program, require_threads
from mess.runtime.registry import runtime_of
from mess.signals.decision import leaves


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The label map of the exit that answered, and what made the image leave there."""

    label_map: NDArray[np.uint8]
    """(H, W) class ids of the whole image, at the bundle's input size whatever its own was; without
    the padding of a bundle that pads, and at the image's own size of one that takes tiles."""
    exit_id: str
    exit_index: int
    """0-based, in order of depth."""
    signal: float | None
    """None at an exit without one, such as the last, and where several tiles have several."""
    tiles: tuple[int, ...] | None = None
    """Of a bundle of tiles, how many left at each exit; the exit above is then the deepest one."""


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
        self.framing, self.normalisation = input_of(manifest, path)
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what its network takes."""
        return self.framing.size

    def __call__(self, image: Path | str | NDArray[np.uint8]) -> Answer:
        """Answer one image: a path, or RGB of any size, (H, W, 3) uint8."""
        pixels = self._pixels(image)
        frames = self.framing.frames(pixels.shape[:2])
        answers = [self.answer(self._prepared(pixels, frame)) for frame in frames]
        return self._joined(frames, answers, pixels.shape[:2])

    def preprocess(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bring to the bundle's size and normalise; (3, H, W) float32.

        Raises BundleError for an image that makes several tiles.
        """
        pixels = self._pixels(image)
        frame, *others = self.framing.frames(pixels.shape[:2])
        if others:
            raise BundleError(
                f"an image of {pixels.shape[:2]} makes {1 + len(others)} tiles of {self.size}, and "
                "no single input. Call the bundle, or cut the image by `bundle.framing.frames`."
            )
        return self._prepared(pixels, frame)

    def _prepared(self, pixels_HW3: NDArray[np.uint8], frame: Frame) -> NDArray[np.float32]:
        return self.normalisation.apply(frame.image(pixels_HW3, self.normalisation.fill))

    def _pixels(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
        array = read_image(Path(image)) if isinstance(image, str | Path) else image
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise BundleError(
                f"an image is RGB of shape (H, W, 3), uint8; got {array.shape}, {array.dtype}."
            )
        return array

    def _joined(
        self, frames: Sequence[Frame], answers: Sequence[Answer], shape: tuple[int, int]
    ) -> Answer:
        """The answer to a picture of `shape` from those to its frames."""
        if not self.framing.tiles:
            (frame,), (answer,) = frames, answers
            return replace(answer, label_map=answer.label_map[frame.core.slices])
        taken = np.bincount([a.exit_index for a in answers], minlength=len(self._exits))
        deepest = max(answers, key=lambda answer: answer.exit_index)
        return replace(
            deepest,
            label_map=stitched(frames, [answer.label_map for answer in answers], shape),
            signal=deepest.signal if len(answers) == 1 else None,
            tiles=tuple(taken.tolist()),
        )

    def answer(self, image_3HW: NDArray[np.float32], *, until: int | None = None) -> Answer:
        """Answer one normalised image of shape (3, H, W), padding too: what a latency measures.

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
        """Every exit's answer in turn, each as soon as it is there (anytime inference).

        Of an image in tiles, the features of all are held meanwhile.
        """
        pixels = self._pixels(image)
        frames = self.framing.frames(pixels.shape[:2])
        streams = [self.answers(self._prepared(pixels, frame)) for frame in frames]
        for answers in zip(*streams, strict=True):
            yield self._joined(frames, answers, pixels.shape[:2])

    def answers(self, image_3HW: NDArray[np.float32]) -> Iterator[Answer]:
        """Every exit's answer to one normalised image in turn, as `answer` gives one."""
        alive = self._start(image_3HW)
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
    number they were measured with. Raises BundleError that names the file at fault, MessError for
    a number of threads that cannot be.
    """
    require_threads(threads)
    path = Path(path)
    manifest = read_manifest(path, Manifest)
    require_files(manifest, path)
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
