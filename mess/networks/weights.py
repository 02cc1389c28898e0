"""The weights of an overprovisioned network as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mess.common.files import atomic_path
from mess.errors import WeightsError


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, atomically."""
    # Contiguous: safetensors refuses the channels-last layout that networks are kept in.
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_weights(network: nn.Module, path: Path, prefix: str = "") -> None:
    """Read what `save_weights` wrote; raises WeightsError when it is of another network.

    With a prefix, such as "backbone.", only the tensors whose names begin with it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # An open safetensors file has keys but does not iterate.
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            state = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise WeightsError(
            f"{path} does not exist; train it with `mess train-overprovisioned`."
        ) from None
    except SafetensorError as error:
        raise WeightsError(f"{path} is not safetensors: {error}.") from error
    expected = {
        name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefix)
    }
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            raise WeightsError(f"{path} is of another network: {name!r} stands on one side alone.")
        if expected[name].shape != state[name].shape:
            raise WeightsError(
                f"{path} is of another network: {name!r} has shape {list(state[name].shape)}, "
                f"the configuration needs {list(expected[name].shape)}."
            )
    network.load_state_dict(state, strict=not prefix)
