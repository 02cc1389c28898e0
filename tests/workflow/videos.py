"""Videos of the images that a run searches: what is nearly identical to them, and to itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mess.runs.run import Run
from tests.seeds import seeded


def write_video(run: Run, root: Path, *, frames: int) -> None:
    """Frames, with noise of their own, of the first ten images that are searched."""
    source, rng = run.config.data.root, np.random.default_rng(seeded(0))
    assert source is not None
    for kind in ("images", "masks"):
        (root / "val" / kind).mkdir(parents=True)
    shutil.copyfile(source / "classes.json", root / "classes.json")
    for scene in range(10):
        name = f"calibration-{scene:05d}.png"
        image = np.asarray(Image.open(source / "val" / "images" / name)).astype(float)
        for frame in range(frames):
            noisy = (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)
            own = f"scene{scene}_{frame}.png"
            Image.fromarray(noisy).save(root / "val" / "images" / own)
            shutil.copyfile(source / "val" / "masks" / name, root / "val" / "masks" / own)
