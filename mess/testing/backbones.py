"""What every backbone promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from mess.networks.backbones import Backbone
from mess.networks.backbones.base import IMAGE

M = TypeVar("M", bound=nn.Module)

CLASSES = 5


class BackboneContract:
    """Subclass as `TestMine` and define `build`; images are 32x48 pixels."""

    stride = 8
    """Pixels of the input by which the final logits' pixels are apart."""

    def build(self, num_classes: int) -> Backbone:
        """The backbone; it is called several times, on torch's meta device too."""
        raise NotImplementedError

    def test_it_is_blocks_in_order_and_a_head(self) -> None:
        with torch.device("meta"):
            backbone = self.build(CLASSES).eval()
            # On meta nothing is computed. Not square, so that swapped axes show.
            image = torch.empty(2, 3, 32, 48)
        assert isinstance(backbone, Backbone)
        tensors = run_in_turn(backbone, image, lambda _name, _tensors: None)
        for name in backbone.names:
            assert tensors[name].dim() == 4, "a block returns features (B, C, h, w)"
        logits = backbone.head(*(tensors[name] for name in backbone.head_reads))
        assert logits.shape == (2, CLASSES, 32 // self.stride, 48 // self.stride)
        assert backbone(image).shape == logits.shape

    def test_blocks_have_names_of_their_own(self) -> None:
        """Exit points are named by them."""
        with torch.device("meta"):
            backbone = self.build(CLASSES)
        assert len(backbone.names) == len(backbone.blocks) == len(set(backbone.names))
        assert all(isinstance(name, str) and name for name in backbone.names)

    def test_blocks_leave_their_inputs_as_they_are(self) -> None:
        """Exits read them too."""
        self._require_inputs_left(filled(self._on_meta()))

    def test_blocks_leave_their_inputs_as_they_are_in_training(self) -> None:
        """Dropout in place changes nothing in eval mode."""
        self._require_inputs_left(filled(self._on_meta()).train())

    def _require_inputs_left(self, backbone: Backbone) -> None:
        # Two: in training, features of one position have no deviation.
        images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
        before: dict[str, Tensor] = {}

        def compare(block: str, tensors: Mapping[str, Tensor]) -> None:
            # Block by block: in-place changes further on would hide which one it was.
            for name, tensor in tensors.items():
                same = torch.equal(tensor, before.setdefault(name, tensor.clone()))
                assert same, f"{block} changes {name!r} in place"

        with torch.inference_mode():
            tensors = run_in_turn(backbone, images, compare)
            backbone.head(*(tensors[name] for name in backbone.head_reads))
            compare("the head", tensors)

    def test_two_images_are_answered_as_each_alone(self) -> None:
        """In eval mode nothing passes between the images of a batch."""
        backbone = filled(self._on_meta())
        images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            together = backbone(images)
            apart = torch.cat([backbone(image[None]) for image in images])
        # Not equal to the bit: libraries may sum another batch size in another order.
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)

    def _on_meta(self) -> Backbone:
        with torch.device("meta"):
            return self.build(CLASSES)


def run_in_turn(
    backbone: Backbone, image_BCHW: Tensor, after: Callable[[str, Mapping[str, Tensor]], None]
) -> dict[str, Tensor]:
    """All tensors by name; `after` is told of each block and of what there is behind it."""
    tensors = {IMAGE: image_BCHW}
    after(IMAGE, tensors)
    for index, name in enumerate(backbone.names):
        tensors = backbone.span(index, index + 1)(tensors, {*tensors, *backbone.gives[index]})
        after(name, tensors)
    return tensors


def filled(module: M) -> M:
    """A module from the meta device with cheap, tame, reproducible weights, in eval mode."""
    module = module.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    # Those that are in no state dict, too.
    for name, tensor in (module.state_dict() | dict(module.named_buffers())).items():
        _fill(name, tensor, generator)
    return module


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name.endswith(("running_var", "num_batches_tracked")):
        tensor.fill_(1)
    elif not tensor.is_floating_point():
        # What is an index is a valid one.
        tensor.zero_()
    elif tensor.dim() > 1:
        # A uniform variable up to this bound has a variance of 1 / fan-in, so that features neither
        # vanish nor blow up over the blocks.
        bound = (3 / tensor[0].numel()) ** 0.5
        tensor.uniform_(-bound, bound, generator=generator)
    else:
        tensor.uniform_(0.0, 1.0, generator=generator)
