"""Batch normalisation over the batches of all processes, on any device.

torch's SyncBatchNorm does not run on CPUs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.compute.processes import Processes
from mess.errors import ConfigError


def normalise_together(module: nn.Module, processes: Processes) -> None:
    """Have every BatchNorm2d in `module` use, in training, the statistics of all processes.

    Parameters, buffers and evaluation stay as they are. Raises ConfigError for a kind of it whose
    forward pass is not known.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            # On the instance, which a call asks first: class and names of weights stay torch's.
            part.forward = MethodType(_forward(processes, _afterwards(name, part)), part)


def normalise_apart(module: nn.Module) -> None:
    """Undo `normalise_together`."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            vars(part).pop("forward", None)


def _afterwards(name: str, part: nn.BatchNorm2d) -> tuple[nn.Module, ...]:
    """What a layer does after normalising: timm's have dropout and an activation inside."""
    known = type(part) is nn.BatchNorm2d or type(part).__name__ == "BatchNormAct2d"
    if not (known and part.affine and part.track_running_stats):
        raise ConfigError(
            f"batch normalisation {name!r} ({type(part).__name__}) is of a kind that processes "
            'cannot share. Set training.batch_norm = "process".'
        )
    inside = () if type(part) is nn.BatchNorm2d else (part.drop, part.act)
    return tuple(layer for layer in inside if isinstance(layer, nn.Module))


def _forward(processes: Processes, afterwards: tuple[nn.Module, ...]) -> Any:
    def forward(self: nn.BatchNorm2d, input: Tensor) -> Tensor:
        if not self.training:
            return type(self).forward(self, input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        output, mean, variance, count = _TogetherFunction.apply(
            input, self.weight, self.bias, self.eps, processes
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            # Without a momentum torch keeps the mean over all batches.
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            # As in torch: running variances are unbiased, those that normalise are not.
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        for layer in afterwards:
            output = layer(output)
        return output

    return forward


class _TogetherFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Statistics are of the parameters' precision, whatever that of the features.
        own = weight.new_full((1,), input.numel() / input.shape[1])
        variance, mean = torch.var_mean(input.to(weight.dtype), (0, 2, 3), correction=0)
        # Sums of squares add up over processes, variances do not. In double precision, or one that
        # is small beside its mean would be lost.
        moments = torch.cat([own, own * mean, own * variance]).double()
        moments[1 + len(mean) :] += own * mean.double().square()
        count, total, squares = processes.sum(moments).split([1, len(mean), len(mean)])
        together = (total / count).to(weight.dtype)
        # A difference of squares may round to less than 0.
        spread = (squares / count - (total / count).square()).clamp(min=0).to(weight.dtype)
        count = count.to(weight.dtype)
        scale = (spread + eps).rsqrt()
        ctx.processes = processes
        ctx.save_for_backward(input, weight, together, spread, scale, count)
        ctx.eps = eps
        # For the running statistics alone; the formula of `backward` has their gradient in it.
        ctx.mark_non_differentiable(together, spread, count)
        output = F.batch_norm(input, together, spread, weight, bias, False, 0.0, eps)
        return output, together, spread, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance, scale, count = ctx.saved_tensors
        # With x̂ = (x - mean) · scale, and means over the batches of all processes:
        #     dx = weight · scale · (dy - mean(dy) - x̂ · mean(dy · x̂))
        # torch's for evaluation gives the first term, and Σ dy and Σ dy · x̂ of this process.
        direct, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], input, weight, mean, variance, mean, scale, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        sums = ctx.processes.sum(torch.cat([by_bias, by_weight]))
        bias_sum, weight_sum = (sums / count).split(len(mean))
        factor = weight * scale
        shape = (1, -1, 1, 1)
        centred = input.to(direct.dtype) - mean.to(direct.dtype).view(shape)
        direct.addcmul_(centred, (-factor * scale * weight_sum).to(direct.dtype).view(shape))
        direct.sub_((factor * bias_sum).to(direct.dtype).view(shape))
        # Of weight and bias this process's part: `sum_gradients` adds them up with all others.
        return direct, by_weight, by_bias, None, None
