"""Times the loading of training crops from our tile store against decoding both PNGs for every sample.

    python benchmarks/loading.py [tiles=3] [size=1024] [seconds=5]

Tiles are simulated BCI. A sample is a 256-px crop of each stain, float32 in [-1, 1], without augmentation. The
reference decodes with Pillow; OpenCV, which is faster, is there for comparison. All files are in the system's cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timing import Row, argument, finish, ratios, take_turns

from ihc2he.data.bci import BCIDataModule
from ihc2he.data.samplers import SampleIndex
from ihc2he.data.transforms import normalise
from ihc2he.images.finding import find_images
from ihc2he.simulate.bci import write_bci

CROP = 256  # px
Decoder = Callable[[Path], NDArray[np.uint8]]


def with_pillow(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, HxWx3 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


def with_opencv(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, HxWx3 RGB."""
    bgr: Any = cv2.imread(str(path))
    return bgr[..., ::-1]


def decoded_crop(path: Path, decode: Decoder, rng: np.random.Generator) -> Any:
    """Return a random crop of a PNG as a tensor."""
    image = decode(path)
    top, left = rng.integers(np.array(image.shape[:2]) - CROP + 1)
    return normalise(image[top : top + CROP, left : left + CROP])


def measure(root: Path, tiles: int, size: int, seconds: int) -> list[Row]:
    """Return the rows, timed for so many seconds or a little more; a round is one sample of every training tile."""
    write_bci(root / "bci", tiles, size)
    folders = root / "bci" / "IHC" / "train", root / "bci" / "HE" / "train"
    names = find_images(folders[0])
    data = BCIDataModule(
        root=str(root / "bci"), store=str(root / "store"), crop_size=CROP, num_workers=0, val_fraction=0.0, flip=False,
        rotate90=False,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    samples: Any = data.train_dataloader().dataset
    rng, epoch = np.random.default_rng(0), count()

    def ours() -> Sequence[Any]:
        number = next(epoch)
        return [samples[SampleIndex(number, i)] for i in range(len(names))]

    def decoding(decode: Decoder) -> Callable[[], Sequence[Any]]:
        return lambda: [decoded_crop(folder / name, decode, rng) for name in names for folder in folders]

    decoders = {"Pillow": with_pillow, "OpenCV": with_opencv}
    stored = {row["name"]: data.tiles.read(i, "ihc") for i, row in enumerate(data.tiles.rows)}
    same = {
        against: "same pixels" if all((decode(folders[0] / n) == stored[n]).all() for n in names) else "OTHER PIXELS"
        for against, decode in decoders.items()
    }
    calls = {against: decoding(decode) for against, decode in decoders.items()}
    case = f"loading {len(names)} pairs of {CROP}-px crops of {size}-px tiles"
    return ratios(case, take_turns({**calls, "ours": ours}, seconds), same)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), argument("tiles", 3), argument("size", 1024), argument("seconds", 5))
    finish("loading", found)
