"""What every backbone is: an explicit list of named blocks and the network's own head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from mess.errors import WeightsError


class Backbone(nn.Module):
    """A segmentation network as blocks, run one after another, and a final head.

    `blocks` maps names to modules in order of execution; each takes the features of the one before
    it (the first takes the image, (B, 3, H, W)) and returns features (B, C, h, w). `head` turns the
    last features into logits (B, classes, h, w) at native resolution. Exits attach to the outputs
    of blocks, so what lies before the first block of interest, such as a stem, belongs into it.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("a backbone needs at least one block")
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())
        self.head = head

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Final logits at native resolution."""
        features = image_BCHW
        for block in self.blocks:
            features = block(features)
        return self.head(features)


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
