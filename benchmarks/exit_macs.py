"""Multiply-adds to reach every exit against the size of the image, as in BranDeepLabV3's Fig. 4.

    python benchmarks/exit_macs.py [--output FILE]

DeepLabV3 on ResNet101 with 3, 5, 7 and 9 side branches (DeepLab heads, 256 channels, 21 classes),
laid out without weights. Reaching an exit costs the backbone up to it and the exit, not the exits
before it. Prints and writes to FILE (JSON) the costs of the seven branches at several sizes, and
all four networks beside the paper's Tables I to IV, which count normalisation as well. Draws the
first into FILE with the suffix .svg. Beside them the networks of the MESS paper's Table 2. Takes
seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from exit_macs_figure import draw
from torch import nn

from mess.common.files import write_text
from mess.config import Config, parse_config
from mess.exits import FINAL, ExitArchitecture
from mess.networks.backbones import build_backbone
from mess.networks.backbones.heads import HeadOptions
from mess.networks.candidates import Candidate, candidates
from mess.networks.heads import build_exit

SIZES = (128, 192, 256, 384, 512, 768, 1024)
"""Sides of square images, in pixels."""

DRAWN = 7
"""Side branches of Fig. 4."""

CLASSES = 21

PAPER_SIZE = 256

PAPER_GFLOPS = {
    3: (20.49, 30.83, 51.44, 60.60),
    5: (17.04, 23.94, 30.83, 51.44, 56.02, 60.60),
    7: (14.74, 20.49, 26.24, 30.83, 36.58, 51.44, 56.02, 60.60),
    9: (13.59, 17.04, 21.64, 25.09, 29.68, 33.13, 37.73, 51.44, 56.02, 60.60),
}
"""Tables I to IV by number of side branches, the network's own head last."""

NINE = (
    *(f"layer3.{block}" for block in (1, 4, 8, 11, 15, 18, 22)),
    *("layer4.0", "layer4.1"),
)
"""The blocks that cost what Table IV prints; the rule that fits Tables I to III gives others."""

OPERATIONS_PER_NORMALISED_VALUE = 5
"""With which the figures of BranDeepLabV3 come out."""

TABLE_2_GFLOPS = {"drn50": 138.63, "deeplabv3_resnet50": 163.86, "mobilenet_v2": 8.78}
"""The baselines of the MESS paper, at 512×512."""

TABLE_2_SIZE = 512

TABLE_2_OPERATIONS_PER_NORMALISED_VALUE = 2


class Exit(NamedTuple):
    """What it takes to reach an exit of an image of one size: multiply-adds, and values that batch
    normalisation puts out.
    """

    name: str
    block: str
    macs: int
    normalised: int

    @property
    def operations(self) -> int:
        """Counted as the paper seems to have."""
        return self.macs + OPERATIONS_PER_NORMALISED_VALUE * self.normalised


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("runs/exit-macs.json"))
    options = parser.parse_args()
    by_size = {size: exits(size, DRAWN + 1) for size in SIZES}
    print_sizes(by_size)
    compared = [row for branches in PAPER_GFLOPS for row in comparison(branches, branches + 1)]
    compared += comparison(9, NINE)
    print_comparison(compared)
    baselines = [baseline(name) for name in TABLE_2_GFLOPS]
    print_baselines(baselines)
    rows: dict[str, list[dict[str, Any]]] = {
        "sizes": [
            {"size": size, "exit": each.name, "block": each.block, "macs": each.macs}
            for size, some in by_size.items()
            for each in some
        ],
        "paper": compared,
        "baselines": baselines,
    }
    sections = (
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in some) + "\n]"
        for name, some in rows.items()
    )
    write_text(options.output, "{\n" + ",\n".join(sections) + "\n}\n")
    lines = {
        each.name: [(size, by_size[size][index].macs) for size in SIZES]
        for index, each in enumerate(by_size[PAPER_SIZE])
    }
    write_text(options.output.with_suffix(".svg"), draw(lines))


def exits(size: int, points: int | Sequence[str]) -> list[Exit]:
    """The side branches b1, b2, ... and the network's own head, `out`."""
    config = parse_config(
        {
            "data": {"size": [size, size]},
            "backbone": {"name": "deeplabv3_resnet101"},
            "exits": {
                "points": points, "crm": [1], "blocks": [0], "rdi": [False], "heads": ["dlb"],
                "dlb_channels": 256, "max_exit_cost": 100,
            },
        }
    )  # fmt: skip
    rows = candidates(config, CLASSES)
    last = rows[-1].point
    # At the last point our candidates have an exit beside the network's own head.
    chosen = [row for row in rows if row.exit_id == FINAL or row.point < last]
    normalised = normalised_values(config, chosen)
    return [
        Exit("out" if row.exit_id == FINAL else f"b{row.point}", row.block, row.path_macs, values)
        for row, values in zip(chosen, normalised, strict=True)
    ]


def normalised_values(config: Config, rows: Sequence[Candidate]) -> list[int]:
    """Values that batch normalisation puts out on the way to each exit."""
    found = []
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(config.backbone, CLASSES)
        for row in rows:
            deepest = backbone.names.index(row.block)
            body = nn.Sequential(*backbone.blocks[: deepest + 1])
            # The network's own head is the branches' too.
            head = build_exit(
                ExitArchitecture(1, 0, False, "dlb"), row.channels, CLASSES, HeadOptions()
            )
            found.append(_count_normalised(nn.Sequential(body, head), config.data.size))
    return found


def _count_normalised(network: nn.Module, size: tuple[int, int]) -> int:
    counts: list[int] = []
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [
        layer.register_forward_hook(lambda *call: counts.append(call[-1].numel()))
        for layer in layers
    ]
    network.eval()(torch.empty(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def comparison(branches: int, points: int | Sequence[str]) -> list[dict[str, Any]]:
    """The exits of a network beside the paper's; `points` are given as in `exits.points`."""
    return [
        {
            "branches": branches,
            "placed": "by the rule" if isinstance(points, int) else "by name",
            "exit": each.name,
            "block": each.block,
            "macs": each.macs,
            "paper_gflops": gflops,
            "ratio": round(each.macs / 1e9 / gflops, 4),
            "with_normalisation": each.operations,
        }
        for each, gflops in zip(exits(PAPER_SIZE, points), PAPER_GFLOPS[branches], strict=True)
    ]


def baseline(name: str) -> dict[str, Any]:
    """A network to its own head, beside Table 2 of the MESS paper."""
    data = {"size": [TABLE_2_SIZE, TABLE_2_SIZE]}
    config = parse_config({"data": data, "backbone": {"name": name}})
    macs = candidates(config, CLASSES)[-1].path_macs
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(config.backbone, CLASSES)
        values = _count_normalised(backbone, config.data.size)
    return {
        "network": name,
        "macs": macs,
        "paper_gflops": TABLE_2_GFLOPS[name],
        "ratio": round(macs / 1e9 / TABLE_2_GFLOPS[name], 4),
        "with_normalisation": macs + TABLE_2_OPERATIONS_PER_NORMALISED_VALUE * values,
    }


def print_baselines(rows: Sequence[dict[str, Any]]) -> None:
    """Ours beside the MESS paper's."""
    print(
        "| network | GMACs | paper's GFLOPs | ratio "
        f"| GMACs + {TABLE_2_OPERATIONS_PER_NORMALISED_VALUE} a normalised value |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for row in rows:
        print(
            f"| `{row['network']}` | {row['macs'] / 1e9:.2f} | {row['paper_gflops']:.2f} "
            f"| {row['ratio']:.4f} | {row['with_normalisation'] / 1e9:.2f} |"
        )


def print_sizes(by_size: dict[int, list[Exit]]) -> None:
    """GMACs of every exit at every size, and how far from proportional to the pixels they are."""
    names = [f"{size}×{size}" for size in by_size]
    print(f"| exit | block | {' | '.join(names)} |\n| --- | --- |{' --- |' * len(names)}")
    for some in zip(*by_size.values(), strict=True):
        cells = " | ".join(f"{each.macs / 1e9:.2f}" for each in some)
        print(f"| {some[0].name} | `{some[0].block}` | {cells} |")
    for size, some in by_size.items():
        pixels = (size / PAPER_SIZE) ** 2
        growth = [
            each.macs / start.macs for each, start in zip(some, by_size[PAPER_SIZE], strict=True)
        ]
        print(
            f"{size}: {pixels:g} times the pixels of {PAPER_SIZE}, "
            f"{min(growth):.5f} to {max(growth):.5f} times the multiply-adds"
        )


def print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """Ours beside the paper's."""
    print(
        "| branches | exit | block | GMACs | paper's GFLOPs | ratio "
        f"| GMACs + {OPERATIONS_PER_NORMALISED_VALUE} a normalised value |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        print(
            f"| {row['branches']}, {row['placed']} | {row['exit']} | `{row['block']}` "
            f"| {row['macs'] / 1e9:.2f} | {row['paper_gflops']:.2f} | {row['ratio']:.4f} "
            f"| {row['with_normalisation'] / 1e9:.2f} |"
        )
    for placed in ("by the rule", "by name"):
        for branches in PAPER_GFLOPS:
            some = [r for r in rows if (r["branches"], r["placed"]) == (branches, placed)]
            if some:
                ratios = [row["ratio"] for row in some]
                off = max(
                    abs(row["with_normalisation"] / 1e9 - row["paper_gflops"]) for row in some
                )
                print(
                    f"{branches} branches, {placed}: ratio {min(ratios):.4f} to {max(ratios):.4f}; "
                    f"with normalisation at most {off:.3f} G off"
                )


if __name__ == "__main__":
    main()
