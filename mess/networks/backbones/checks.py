"""Whether a model of another library that was cut into blocks is still that model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mess.errors import ConfigError, MessError
from mess.networks.backbones.base import IMAGE, Backbone
from mess.networks.backbones.libraries import built, first_line

TRIAL = (64, 96)
"""Height and width of the image that a cut is tried on."""

BY_HAND = "Write its factory by hand, see docs/own-backbone.md."


def checked_backbone(
    model: nn.Module,
    cut: Callable[[nn.Module], Backbone],
    answer: Callable[[nn.Module, Tensor], Tensor],
    title: str,
    otherwise: str = BY_HAND,
    *,
    left_out: Callable[[Tensor], Tensor] | None = None,
) -> Backbone:
    """The blocks that `cut` makes of `model`, which is taken apart, with its names of tensors.

    `answer` runs the model by itself: an image to the logits that the blocks should give, behind
    `left_out` where the model does more to them. On a small image and a copy with random weights
    they do so bit for bit, and change no tensor in place; on the meta device shapes alone are
    compared. Raises ConfigError with the reason, which calls the model `title` and ends with
    `otherwise`, the next move.
    """
    # Tensors of the inference mode do not tell what changes them.
    with torch.inference_mode(False), torch.no_grad():
        probe = copy.deepcopy(model).eval()
        on_meta = any(parameter.is_meta for parameter in probe.parameters())
        device = torch.device("meta" if on_meta else "cpu")
        # A generator of its own leaves the global one alone. The CPU is named for factories that
        # are called under torch.device("meta").
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, *TRIAL, generator=generator, device="cpu").to(device)
        if not on_meta:
            scatter(probe.to(device))
        expected = _answered(probe, answer, image, title)
        backbone = built(lambda: cut(probe), title)
        fault = f"{title} is no chain of its layers"
        found = run_in_turn(backbone, image, title, fault, otherwise)
        if left_out is not None:
            found = left_out(found)
    if found.shape != expected.shape:
        _refuse(
            backbone, title, f"of shape {list(found.shape)}, not {list(expected.shape)}", otherwise
        )
    # No tolerance: the same layers in the same order round the same.
    if not on_meta and not torch.equal(found, expected):
        off = float((found - expected).abs().max())
        _refuse(backbone, title, f"that are off by up to {off:.3g}", otherwise)
    return cut(model).name_after(model)


def output_of(model: nn.Module, head: nn.Module, image: Tensor, title: str) -> Tensor:
    """What the model's `head` returns when the model runs by itself."""
    logits: list[Tensor] = []
    handle = head.register_forward_hook(lambda *call: logits.append(call[-1]))
    try:
        model(image)
    finally:
        handle.remove()
    if len(logits) != 1:
        raise ConfigError(f"{title} runs its classifier {len(logits)} times, not once. {BY_HAND}")
    return logits[0]


def scatter(model: nn.Module) -> None:
    """Random parameters: fresh networks have scales of zero, behind which a wrong cut is hidden.

    Statistics become a fresh network's: with those of trained weights, numbers would overflow.
    """
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.fill_(float(name.endswith("var")))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # Uniform of variance 1 / inputs: sums of so many products do not vanish or overflow.
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:
            parameter.uniform_(0.0, 1.0, generator=generator)


def _answered(
    model: nn.Module, answer: Callable[[nn.Module, Tensor], Tensor], image: Tensor, title: str
) -> Tensor:
    try:
        logits = answer(model, image)
    except MessError:
        raise
    except Exception as error:  # whatever another library's module raises
        raise ConfigError(
            f"{title} does not run on an image of {TRIAL[0]}×{TRIAL[1]} pixels: "
            f"{first_line(error)}. {BY_HAND}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{title} returns no logits (B, classes, h, w), but {type(logits).__name__}. {BY_HAND}"
        )
    return logits


def run_in_turn(
    backbone: Backbone, image: Tensor, title: str, fault: str, otherwise: str
) -> Tensor:
    """The logits of blocks and head in eval mode, one after another; in training they run, too.

    Raises ConfigError for a part that fails or returns no features, whose message begins with
    `fault`, and for one that changes what exits read, such as by dropout in place.
    """
    logits = _run_in_turn(backbone.eval(), image, title, fault, otherwise)
    # Two images, for features of one position have no deviation.
    images = torch.cat((image, image))
    with torch.random.fork_rng(devices=[]):  # dropout draws
        _run_in_turn(backbone.train(), images, title, f"{fault} in training", otherwise)
    backbone.eval()
    return logits


def _run_in_turn(
    backbone: Backbone, image: Tensor, title: str, fault: str, otherwise: str
) -> Tensor:
    tensors = {IMAGE: image}
    for index, (name, block) in enumerate(zip(backbone.names, backbone.blocks, strict=True)):
        inputs = [tensors[read] for read in backbone.reads[index]]
        found = _checked(repr(name), block, inputs, title, fault, otherwise)
        gives = backbone.gives[index]
        several = found if len(gives) > 1 and isinstance(found, tuple | list) else (found,)
        are_tensors = all(isinstance(each, Tensor) for each in several)
        if len(several) != len(gives) or not are_tensors or several[0].dim() != 4:
            raise ConfigError(
                f"{fault}: {name!r} does not return features (B, C, h, w)"
                f"{f' and {len(gives) - 1} tensors' if len(gives) > 1 else ''}. {otherwise}"
            )
        tensors |= dict(zip(gives, several, strict=True))
    inputs = [tensors[read] for read in backbone.head_reads]
    logits = _checked("the head", backbone.head, inputs, title, fault, otherwise)
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{fault}: the head does not return logits (B, classes, h, w), but "
            f"{type(logits).__name__}. {otherwise}"
        )
    return logits


def _checked(
    name: str, part: nn.Module, inputs: list[Tensor], title: str, fault: str, otherwise: str
) -> Any:
    """What a part returns, which has to leave its inputs as they are."""
    versions = [tensor._version for tensor in inputs]
    try:
        found = part(*inputs)
    except Exception as error:  # whatever another library's module raises
        shapes = " and ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ConfigError(
            f"{fault}: {name} does not run on features of shape {shapes}: {first_line(error)}. "
            f"{otherwise}"
        ) from error
    # torch counts changes in place, on the meta device too, where values would not show them.
    if [tensor._version for tensor in inputs] != versions:
        raise ConfigError(
            f"{title}: block {name} changes its input in place, which exits read too. Let the "
            "block before it end a layer later, or build the model with inplace=False."
        )
    return found


def _refuse(backbone: Backbone, title: str, difference: str, otherwise: str) -> NoReturn:
    raise ConfigError(
        f"{title} is no chain of its layers: the blocks {', '.join(backbone.names)} in turn, then "
        f"the head, give logits {difference}. {otherwise}"
    )
