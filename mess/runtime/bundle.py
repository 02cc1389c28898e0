"""Running a bundle: numpy and one runtime; onnxruntime by default, no torch.

A bundle is a folder with manifest.json, one program a segment and one that turns logits into the
label map. Segment programs take features of the segments before (the first the image) and give
those that later ones need, the logits and, where an image may leave, the signal. Where a signal
compares two exits, the first one's program gives its label map too, and the second one's takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mess.common.framing import Frame, stitched
from mess.common.images import read_image
from mess.errors import BundleError, MessError
from mess.runtime.format import (
    LABELS,
    LOGITS,
    NEXT,
    PREVIOUS_LABELS,
    SIGNAL,
    Manifest,
    RunManifest,
)
from mess.runtime.manifest import AGAIN, facts_of, file_content, input_of, read_manifest
from mess.runtime.program import Program, require_threads
from mess.runtime.registry import runtime_of
from mess.runtime.signature import require_signature
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

    def __init__(self, path: Path, manifest: Manifest, threads: int, *, trust: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.framing, self.normalisation = input_of(manifest, path)
        self._threads = threads
        self.trust = trust
        """Whether its programs may be code."""
        self._exits = manifest["exits"]
        self._inputs = [exit_["inputs"] for exit_ in self._exits]
        # Exits with logits of one size share a program.
        programs = _programs(path, manifest, threads, trust)
        self._segments = [programs[exit_["segment"]] for exit_ in self._exits]
        self._answers = {exit_["answer"]: programs[exit_["answer"]] for exit_ in self._exits}

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process, which opens the files itself: programs are of this one.
        return _reopened, (self.path, self.digest, self._threads, self.trust)

    @cached_property
    def facts(self) -> RunManifest:
        """The manifest with what `mess export` tells of the run; BundleError where it does not."""
        return facts_of(self.manifest, self.path)

    @property
    def digest(self) -> str:
        """sha256 of all that the bundle is, its programs with it; the same wherever it lies."""
        return self.manifest["digest"]

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
        if not isinstance(array, np.ndarray):
            raise BundleError(f"an image is a path or a NumPy array, got {type(array).__name__}.")
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise BundleError(
                "an image is RGB of shape (H, W, 3) with at least one pixel, uint8; got "
                f"{array.shape}, {array.dtype}."
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
        program, name = self._segments[index], self._exits[index]["segment"]
        # By the names in the manifest: what one segment gives depends on what later ones take.
        values = self._run(program, name, *(alive[name] for name in self._inputs[index]))
        outputs = dict(zip(self._exits[index]["outputs"], values, strict=True))
        signal = outputs.get(SIGNAL)
        given = {
            name.removeprefix(NEXT): value
            for name, value in outputs.items()
            if name.startswith(NEXT)
        }
        if LABELS in outputs:
            given[PREVIOUS_LABELS] = outputs[LABELS]
        later = {name for names in self._inputs[index + 1 :] for name in names}
        return _Found(
            logits=outputs[LOGITS],
            signal=None if signal is None else self._signal(program.to_array(signal), name),
            # Features that only a later segment reads are kept for it, others let go.
            alive={name: value for name, value in {**alive, **given}.items() if name in later},
        )

    def _run(self, program: Program, name: str, *values: Any) -> Sequence[Any]:
        try:
            return program(*values)
        except Exception as error:  # whatever its library raises
            raise _not_run(self.path / name, error) from error

    def _signal(self, signal: NDArray[Any], name: str) -> float:
        if signal.size != 1:
            raise BundleError(
                f"{self.path / name} gives a signal of shape {signal.shape}, and an image has one. "
                f"{AGAIN}"
            )
        return float(signal.item())

    def _answer(self, index: int, found: _Found) -> Answer:
        name = self._exits[index]["answer"]
        program = self._answers[name]
        labels_1HW = program.to_array(self._run(program, name, found.logits)[0])
        if labels_1HW.shape != (1, *self.size) or labels_1HW.dtype != np.uint8:
            raise BundleError(
                f"{self.path / name} gives {labels_1HW.shape}, {labels_1HW.dtype}, and a label map "
                f"is {(1, *self.size)}, uint8. {AGAIN}"
            )
        label_map = labels_1HW[0]
        return Answer(
            label_map=label_map,
            exit_id=self._exits[index]["exit_id"],
            exit_index=index,
            signal=found.signal,
        )


def load_bundle(
    path: Path | str,
    *,
    threads: int = 1,
    trust: bool = False,
    public_key: Path | str | None = None,
) -> Bundle:
    """Load a bundle after checking that nothing of it was altered.

    `threads` is the number of threads within an operator; the predicted latencies hold for the
    number they were measured with. Programs of the torch format are code and run only with `trust`;
    ONNX graphs are data. With a `public_key`, a PEM file, the bundle must be signed by its other
    half; that needs `cryptography`. Raises BundleError that names the file at fault, MessError for
    a number of threads that cannot be or a file that holds no key.
    """
    require_threads(threads)
    path = Path(path)
    manifest = read_manifest(path)
    if public_key is not None:
        require_signature(manifest, path, Path(public_key))
    return Bundle(path, manifest, threads, trust=trust)


def _reopened(path: Path, digest: str, threads: int, trust: bool) -> Bundle:
    """The bundle that was pickled; raises BundleError where another lies there by now."""
    bundle = load_bundle(path, threads=threads, trust=trust)
    if bundle.digest != digest:
        raise BundleError(
            f"{path} is another bundle than the one that was pickled: digest {bundle.digest}, it "
            f"was {digest}."
        )
    return bundle


def _programs(path: Path, manifest: Manifest, threads: int, trust: bool) -> dict[str, Program]:
    """Every program of a bundle by its file's name."""
    try:
        runtime = runtime_of(manifest["format"])
        # Before its library is loaded, which may take seconds.
        if runtime.is_code and not trust:
            raise MessError(
                f"it is of format {runtime.format!r}, whose programs are code and may do anything "
                "when they are loaded. If you trust who made it, load it with trust=True, on the "
                "command line --trust."
            )
        kind = runtime.load()
    except MessError as error:
        raise BundleError(f"bundle {path} cannot be run: {error}") from error
    takes = {exit_["answer"]: (1, 1) for exit_ in manifest["exits"]}
    for exit_ in manifest["exits"]:
        takes[exit_["segment"]] = len(exit_["inputs"]), len(exit_["outputs"])
    programs = {}
    for name in manifest["files"]:
        content = file_content(manifest, path, name)
        try:
            program = kind(content, threads)
        except Exception as error:  # whatever its library raises
            raise _not_run(path / name, error) from error
        if (program.inputs, program.outputs) != takes[name]:
            raise BundleError(
                f"{path / name} takes {program.inputs} values and gives {program.outputs}; the "
                f"manifest says {takes[name][0]} and {takes[name][1]}. {AGAIN}"
            )
        programs[name] = program
    return programs


def _not_run(file: Path, error: Exception) -> BundleError:
    # The first line: libraries add where in their own code it was.
    told = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BundleError(f"{file} cannot be run: {told[:500]} {AGAIN}")
