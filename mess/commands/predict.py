"""Running a bundle on images of one's own. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mess.common.files import atomic_path
from mess.common.images import read_image, resize_mask
from mess.errors import MessError
from mess.runtime.bundle import Answer, Bundle, load_bundle


def predict_images(
    bundle: Path,
    images: Sequence[Path],
    output: Path,
    *,
    threads: int,
    trust: bool,
    public_key: Path | None,
) -> list[dict[str, Any]]:
    """Write one palette PNG an image to `output`, at the image's own size.

    Raises MessError, before anything is loaded, where a label map would replace another or an image
    that is given.
    """
    # Before anything is run: a.png and a.jpg, or images of two folders, would share a file.
    twice = [stem for stem, count in Counter(image.stem for image in images).items() if count > 1]
    if twice:
        raise MessError(
            f"{Counter(image.stem for image in images)[twice[0]]} images would be written to "
            f"{output / twice[0]}.png. Give them in separate calls with their own --output."
        )
    given = {image.resolve(): image for image in images}
    for image in images:
        target = _label_map(output, image)
        if target.resolve() in given:
            raise MessError(
                f"the label map of {image} would replace {given[target.resolve()]}, which is one "
                "of the images. Choose another folder with --output."
            )
    loaded = load_bundle(bundle, threads=threads, trust=trust, public_key=public_key)
    palette = [value for color in loaded.facts["palette"] for value in color]
    rows = []
    for image in images:
        pixels = read_image(image)
        answer = loaded(pixels)
        height, width, _ = pixels.shape
        picture = Image.fromarray(resize_mask(answer.label_map, (height, width)))
        picture.putpalette(palette)
        path = _label_map(output, image)
        with atomic_path(path) as temporary:
            # The temporary name does not tell Pillow the format.
            picture.save(temporary, format="PNG")
        rows.append(
            {
                "image": str(image),
                "label_map": str(path),
                "exit_id": answer.exit_id,
                "signal": answer.signal,
                "tiles": _tiles(answer, loaded),
            }
        )
    return rows


def _label_map(output: Path, image: Path) -> Path:
    return output / f"{image.stem}.png"


def _tiles(answer: Answer, bundle: Bundle) -> dict[str, int] | None:
    """How many tiles left at each exit; None where images are not cut into tiles."""
    if answer.tiles is None:
        return None
    names = [exit_["exit_id"] for exit_ in bundle.manifest["exits"]]
    return dict(zip(names, answer.tiles, strict=True))
