"""Models of any make as backbones, by their graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.errors import ConfigError
from mess.networks.backbones import Backbone
from mess.networks.backbones.traced import from_module
from mess.testing import BackboneContract
from mess.testing.backbones import filled
from tests.forked import Forked

CLASSES = 5
SIZES = ((32, 48), (40, 24))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Ladder(nn.Module):
    """Two steps down and one up; logits at the image's size, in a dictionary."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.down1 = convolution(3, 4, 2)
        self.down2 = nn.Sequential(convolution(4, 8, 2), convolution(8, 8))
        self.up = convolution(12, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def features(self, image: Tensor) -> Tensor:
        shallow = self.down1(image)
        deep = F.interpolate(self.down2(shallow), size=shallow.shape[2:], mode="bilinear")
        return self.up(torch.cat([deep, shallow], 1))

    def forward(self, image: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        logits = self.head(self.features(image)) * scale
        wide = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": wide}


BLOCKS = ["down1", "down2.0", "down2", "up"]


class TestLadder(BackboneContract):
    stride = 2

    def build(self, num_classes: int) -> Backbone:
        return from_module(Ladder(num_classes), BLOCKS)


def test_what_crosses_a_cut_follows_from_the_graph() -> None:
    backbone = from_module(Ladder(), BLOCKS)
    assert backbone.names == tuple(BLOCKS)
    # Of the shallow features the last block reads the values and the size.
    assert backbone.reads == (("image",), ("down1",), ("down2.0",), ("down1", "down2"))
    assert backbone.head_reads == ("up",)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_the_model_s_own(size: tuple[int, int], training: bool) -> None:
    model = filled(Ladder()).train(training)
    backbone = from_module(copy.deepcopy(model), BLOCKS).train(training)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = backbone(image)
        assert logits.shape[2:] == (size[0] // 2, size[1] // 2)
        wide = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        assert torch.equal(wide, model(image)["out"])


def test_layers_are_shared_and_called_as_in_the_model() -> None:
    model = Ladder()
    backbone = from_module(model, BLOCKS)
    assert {id(p) for p in backbone.parameters()} == {id(p) for p in model.parameters()}
    assert set(backbone.original_names.values()) == set(model.state_dict())


def test_skips_that_leave_a_layer_s_middle_are_handed_on() -> None:
    backbone = from_module(filled(Forked(CLASSES)), ["quarter", "eighth", "up"])
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    plain = filled(Forked(CLASSES))
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image), plain(image))


class Branching(nn.Module):
    """A step that depends on the size, inside of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolution(4, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) if features.shape[2] % 2 == 0 else features


def test_a_layer_that_cannot_be_traced_is_taken_whole() -> None:
    class Model(nn.Sequential):
        pass

    layers = [convolution(3, 4, 2), Branching(), convolution(4, 4), nn.Conv2d(4, CLASSES, 1)]
    model = filled(Model(*layers))
    backbone = from_module(copy.deepcopy(model), ["0", "1", "2"])
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image), model(image))
    with pytest.raises(ConfigError, match=r"no layer '1\.body' .* taken whole"):
        from_module(model, ["0", "1.body"])


class Gate(nn.Module):
    """A layer that is told a function, and has a step that depends on the size."""

    def forward(self, features: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(features) if features.shape[2] > 1 else features


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.body = Gate(), convolution(4, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(self.gate(features, F.relu))


class Scaling(nn.Module):
    """A constant that is made anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolution(4, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) * torch.tensor(2.0)


@pytest.mark.parametrize("layer", [Gated(), Scaling()])
def test_a_layer_that_makes_what_no_graph_holds_is_taken_whole(layer: nn.Module) -> None:
    model = filled(nn.Sequential(convolution(3, 4, 2), layer, nn.Conv2d(4, CLASSES, 1)))
    names = list(vars(model))
    backbone = from_module(copy.deepcopy(model), ["0", "1"])
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image), model(image))
    assert list(vars(model)) == names


# ---- Refusals


class Own(nn.Module):
    """A model whose forward is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two = convolution(3, 4, 2), convolution(4, 4)
        self.head = nn.Conv2d(4, CLASSES, 1)
        self._forward = forward

    def forward(self, image: Tensor) -> Any:
        return self._forward(self, image)


class Told(Own):
    """A gate that the model itself tells a function."""

    def __init__(self) -> None:
        super().__init__(lambda model, image: model.head(model.gate(model.one(image), F.relu)))
        self.gate = Gate()


class Needy(Ladder):
    def forward(self, image: Tensor, scale: float) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(image, scale)


def _branches(model: Own, image: Tensor) -> Tensor:
    return model.head(model.one(image)) if image.sum() > 0 else model.two(image)


def _drops(model: Own, image: Tensor) -> Tensor:
    return model.head(F.dropout(model.two(model.one(image)), training=model.training))


def _shares(model: Own, image: Tensor) -> Tensor:
    return model.head(model.two(model.one(image))) + model.head(model.one(image))


def _flat(model: Own, image: Tensor) -> Tensor:
    return model.head(model.two(model.one(image))).mean((2, 3))


def _in_place(model: Own, image: Tensor) -> Tensor:
    features = model.one(image)
    return model.head(model.two(features.mul_(2)))


def _asks(model: Own, image: Tensor) -> Tensor:
    # Of a tensor, and not of what stands for it in a graph.
    if torch.is_tensor(image):
        image = image * 2 - 1
    return model.head(model.two(model.one(image)))


def _asks_before_upsampling(model: Own, image: Tensor) -> Tensor:
    return F.interpolate(_asks(model, image), image.shape[2:], mode="bilinear")


def _asks_for_the_end(model: Own, image: Tensor) -> Any:
    logits = _plain(model, image)
    return logits.shape if torch.is_tensor(image) else logits


def _makes(model: Own, image: Tensor) -> Tensor:
    return model.head(model.two(model.one(image * torch.tensor([0.5]))))


def _plain(model: Own, image: Tensor) -> Tensor:
    return model.head(model.two(model.one(image)))


@pytest.mark.parametrize(
    ("model", "blocks", "message"),
    [
        (Own(_branches), ["one"], "its own forward fails with symbolically traced variables"),
        (
            Own(_drops),
            ["one", "two"],
            r"something else in training than in use, as with F\.dropout",
        ),
        (Own(_shares), ["two"], "'one\\.0' runs in two of the parts"),
        (Own(_flat), ["one", "two"], r"no logits \(B, classes, h, w\), but a tensor \[1, 5\]"),
        (Own(_in_place), ["one", "two"], "'two' changes its input in place"),
        (Own(_asks), ["one", "two"], r"no chain .* give logits that are off by up to \d"),
        (Own(_asks_before_upsampling), ["one", "two"], r"give logits that are off by up to \d"),
        (Own(_asks_for_the_end), ["one", "two"], "returns no logits .*, but int"),
        (Own(_makes), ["one", "two"], r"fails with a constant .* keep it as a buffer"),
        (Told(), ["one"], "its own forward fails with argument of type"),
        (Own(_plain), ["one", "tow"], "no layer 'tow' .*did you mean 'two'"),
        (Own(_plain), ["two", "one"], "'one' does not run behind the block before it"),
        (Own(_plain), ["one", "two", "head"], "nothing is left for the head"),
        (Own(_plain), [], "blocks is empty"),
        (Needy(), BLOCKS, "forward needs 'scale' besides the image"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_layer_and_the_reason(
    model: nn.Module, blocks: Sequence[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_module(model, blocks)
