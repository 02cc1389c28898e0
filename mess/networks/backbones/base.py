"""What every backbone is: an explicit list of named blocks and the network's own head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from mess.errors import ConfigError, WeightsError
from mess.networks.backbones.outputs import SelectedChannels, SelectedHead

IMAGE = "image"
"""The tensor that a network starts from, (B, 3, H, W)."""


@dataclass(frozen=True)
class Block:
    """A block, or the head, that reads other tensors than the features of the block before it.

    reads: names of the tensors that it takes, in order: of earlier blocks, or `IMAGE`. Empty, it
        takes the features of the block before.
    gives: names of tensors that it returns behind its own features, for later blocks to read.
    """

    module: nn.Module
    reads: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


class Span(nn.Module):
    """Some of a backbone's blocks in a row: from tensors by name to tensors by name."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        reads: Sequence[tuple[str, ...]],
        gives: Sequence[tuple[str, ...]],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reads, self.gives = tuple(reads), tuple(gives)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the tensors that its blocks give."""
        return tuple(name for names in self.gives for name in names)

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the tensors that its blocks read and do not give, in order of reading."""
        names = dict.fromkeys(name for names in self.reads for name in names)
        return tuple(name for name in names if name not in self.given)

    def forward(
        self, tensors: Mapping[str, Tensor], keep: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Those of `tensors` and of what its blocks give that are in `keep`."""
        live = dict(tensors)
        for index in range(len(self.blocks)):
            live |= self._step(index, live)
            # Let go after their last reader: inference holds what is alive, and no more.
            wanted = {name for names in self.reads[index + 1 :] for name in names}
            live = {n: tensor for n, tensor in live.items() if n in wanted or n in keep}
        return {name: tensor for name, tensor in live.items() if name in keep}

    def _step(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What one block gives."""
        found = self.blocks[index](*(tensors[name] for name in self.reads[index]))
        names = self.gives[index]
        return dict(zip(names, found if len(names) > 1 else (found,), strict=True))


class Backbone(nn.Module):
    """A segmentation network as blocks, run one after another, and a final head.

    `blocks` maps names to modules in order of execution; each takes the features of the one before
    it (the first takes the image, (B, 3, H, W)) and returns features (B, C, h, w). `head` turns the
    last features into logits (B, classes, h, w) at native resolution. Where a block or the head
    reads others, such as a decoder with skip connections, a `Block` says which: features are named
    after the block that gives them. Exits attach to the features of blocks, so what lies before the
    first block of interest, such as a stem, belongs into it.

    `original_names` maps names of `state_dict()` to those that the same tensors have in the model
    of another library that the blocks were taken from; empty for a network of one's own.
    """

    def __init__(self, blocks: Mapping[str, nn.Module | Block], head: nn.Module | Block) -> None:
        super().__init__()
        if not blocks:
            raise ConfigError("a backbone needs at least one block; exits attach to their ends.")
        self.names = tuple(blocks)
        wired = [each if isinstance(each, Block) else Block(each) for each in blocks.values()]
        end = head if isinstance(head, Block) else Block(head)
        before = (IMAGE, *self.names)
        self.reads = tuple(b.reads or (last,) for b, last in zip(wired, before, strict=False))
        self.gives = tuple((n, *b.gives) for n, b in zip(self.names, wired, strict=True))
        self.head_reads = end.reads or (self.names[-1],)
        self._check_names()
        self.blocks = nn.ModuleList(block.module for block in wired)
        self.head = end.module
        self._require_own_tensors()
        self.original_names: Mapping[str, str] = {}
        self._outputs: SelectedChannels | None = None

    def name_after(self, original: nn.Module) -> Self:
        """Note what the tensors that are shared with `original` are called there."""
        theirs: dict[int, str] = {}
        for name, tensor in original.state_dict(keep_vars=True).items():
            theirs.setdefault(id(tensor), name)
        ours = self.state_dict(keep_vars=True).items()
        self.original_names = {n: theirs[id(t)] for n, t in ours if id(t) in theirs}
        return self

    def _check_names(self) -> None:
        known = [IMAGE]
        for name, reads, gives in zip(self.names, self.reads, self.gives, strict=True):
            _require_known(f"block {name!r}", reads, known)
            known += gives
        _require_known("the head", self.head_reads, known)
        repeated = [name for name in known if known.count(name) > 1]
        if repeated:
            raise ConfigError(
                f"two tensors of a backbone are named {repeated[0]!r}; rename the block, or what a "
                "block gives beside its features."
            )

    def _require_own_tensors(self) -> None:
        """Refuse a tensor under two names, of which a file of weights could hold one alone."""
        seen: dict[int, str] = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if (other := seen.setdefault(id(tensor), name)) != name:
                raise ConfigError(
                    f"{other!r} and {name!r} of a backbone are the same tensor: a module stands in "
                    "two places, which weights cannot be saved of. Give each place a module of its "
                    "own."
                )

    def select_outputs(self, channels: Sequence[int]) -> None:
        """Have the logits be these channels of the head's, in this order."""
        self._outputs = SelectedChannels(channels)

    @property
    def final(self) -> nn.Module:
        """The final exit: the head, and the selection of its channels where there is one."""
        return self.head if self._outputs is None else SelectedHead(self.head, self._outputs)

    @property
    def is_chain(self) -> bool:
        """Whether nothing but the last features is alive between two blocks."""
        before = ((IMAGE,), *((name,) for name in self.names))
        reads, gives = (*self.reads, self.head_reads), self.gives
        return reads == before and all(len(names) == 1 for names in gives)

    def span(self, start: int, end: int) -> Span:
        """Blocks `start` (0-based) up to before `end`; the modules are shared."""
        return Span(self.blocks[start:end], self.reads[start:end], self.gives[start:end])

    def alive(self, block: int, until: int, further: Iterable[str]) -> tuple[str, ...]:
        """Names of the tensors that are still read after block `block`, in order of their making.

        By the blocks up to `until`, or as `further`. Indices are 0-based; -1 is before the first.
        """
        made = [IMAGE, *(name for names in self.gives[: block + 1] for name in names)]
        read = {name for names in self.reads[block + 1 : until + 1] for name in names}
        return tuple(name for name in made if name in read or name in further)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Final logits at native resolution."""
        whole = self.span(0, len(self.blocks))
        tensors = whole({IMAGE: image_BCHW}, self.head_reads)
        return self.final(*(tensors[name] for name in self.head_reads))


def _require_known(reader: str, reads: Sequence[str], known: Sequence[str]) -> None:
    for name in reads:
        if name not in known:
            raise ConfigError(
                f"{reader} of a backbone reads {name!r}, which no block before it gives; there are "
                f"{', '.join(known)}. Let an earlier block give it (Block(module, gives=...)), or "
                "move the block behind the one that does."
            )


def load_pretrained(
    model: nn.Module, weights: str, download: WeightsEnum | None, unused: tuple[str, ...]
) -> None:
    """Load classification weights into `model` before it is taken apart.

    `download` is what "torchvision" stands for, None where torchvision has no such weights.
    `unused` are key prefixes of parts the segmentation network drops; they may be absent. Raises
    WeightsError that names the first key whose presence or shape is wrong.
    """
    if weights == "none":
        return
    state = _read(weights, download)
    expected = model.state_dict()
    for name, tensor in expected.items():
        # Files from before torch counted batches have none.
        if name.startswith(unused) or name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            raise WeightsError(f"weights {weights} lack {name!r}; they are of another network.")
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"weights {weights}: {name!r} has shape {list(state[name].shape)}, the network "
                f"needs {list(tensor.shape)}. Choose weights of the same backbone and width."
            )
    unknown = [name for name in state if name not in expected and not name.startswith(unused)]
    if unknown:
        raise WeightsError(f"weights {weights} hold {unknown[0]!r}, which the network has not.")
    with torch.no_grad():
        for name, tensor in expected.items():
            if name in state and not name.startswith(unused):
                # Into the live tensor, in its own type: files may be in half precision.
                tensor.copy_(state[name])


def _read(weights: str, download: WeightsEnum | None) -> Mapping[str, Tensor]:
    names = '"none"' if download is None else '"none", "torchvision"'
    if weights == "torchvision":
        if download is None:
            raise WeightsError(
                "torchvision has no weights of this backbone; backbone.weights is "
                f"{names} or a safetensors file."
            )
        return download.get_state_dict(progress=True, check_hash=True)
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"weights file {weights} does not exist; backbone.weights is {names} or a safetensors "
            "file."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"weights file {weights} is not safetensors: {error}.") from error
