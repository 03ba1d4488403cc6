"""Unlabelled tiles in a folder of your own, and two views of crops of them, which differ in colour alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from ihc2he.data.augmentation import NucleiAugmentation
from ihc2he.data.samplers import SampleIndex
from ihc2he.data.segmentation import random_crop
from ihc2he.data.store import Record, TileStore
from ihc2he.data.stored import StoreDataModule
from ihc2he.data.transforms import to_tensor
from ihc2he.errors import ConfigError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.images.pixelsize import stated_mpp
from ihc2he.tiling.resampling import resample

_STREAM = 0x1C5  # of random numbers, so that these crops change no other


@dataclass(kw_only=True, eq=False)
class UnlabelledTiles(StoreDataModule):
    """The tile store of images without labels; it yields no batches itself.

    Args:
        folder: of PNG, JPEG or TIFF, also in sub-folders.
        mpp: um/px of these files; None: as the TIFF states.
        batch_size: is not used.
    """

    folder: str
    mpp: float | None = None
    batch_size: int = 1

    reports: ClassVar = {}
    samplers: ClassVar = ("uniform",)

    def find_tiles(self) -> list[tuple[str, float]] | None:
        """Return the names of the images, relative to the folder, with their um/px; None if there are none."""
        names = find_images(self._home)
        tiles = [(name, self._mpp_of(self._home / name)) for name in names]
        self.compare_once({self._home / name: mpp for name, mpp in tiles})
        return tiles or None

    def sources(self, tiles: Sequence[tuple[str, float]]) -> dict[str, Path]:
        """Return the files by their names."""
        return {name: self._home / name for name, _ in tiles}

    def read_record(self, tile: tuple[str, float]) -> Record:
        """Return an image at the pixel size of the store."""
        name, mpp = tile
        return Record({"image": resample(read_image(self._home / name), mpp, self.target_mpp)}, {"name": name})

    def how_to_get(self) -> str:
        """Return what to do without images and store."""
        what = "holds no PNG, JPEG or TIFF" if self._home.is_dir() else "is no folder"
        return f"data.ihc={self.folder}: {what}, nor is there a tile store of it at {self.store_path}."

    def settings(self) -> dict[str, Any]:
        """Return the pixel sizes."""
        return {"target_mpp": self.target_mpp, "mpp": self.mpp}

    @property
    def _home(self) -> Path:
        return Path(self.folder).expanduser()

    def _mpp_of(self, file: Path) -> float:
        mpp = self.mpp or stated_mpp(file)
        if mpp is None:
            msg = f"{file}: does not state its pixel size. Pass data.ihc_mpp, in um/px."
            raise ConfigError(msg)
        return mpp


class Views(Dataset[dict[str, torch.Tensor]]):
    """A `weak` view of random crops, moved only, and a `strong` one of the same, changed in colour and sharpness.

    What is at a pixel of the one is at the same pixel of the other. Everything random is a pure function of
    (seed, epoch, index).

    Args:
        store: with the field ``image``.
        crop_size: side of the crops in px.
        weak: for both views.
        strong: for the strong view on top; it moves nothing.
        seed: of all randomness.
    """

    def __init__(
        self, store: TileStore, *, crop_size: int, weak: NucleiAugmentation, strong: NucleiAugmentation, seed: int
    ) -> None:
        self.store = store
        self.crop_size = crop_size
        self.weak, self.strong = weak, strong
        self.seed = seed

    def __getitem__(self, key: int | SampleIndex) -> dict[str, torch.Tensor]:
        epoch, index = key if isinstance(key, SampleIndex) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, index, _STREAM))
        (image,) = random_crop(self.store, int(rng.integers(len(self.store.rows))), self.crop_size, rng)
        nothing = [np.zeros(image.shape[:2], np.int32)]
        weak, _ = self.weak(image, nothing, int(rng.integers(2**32)))
        strong, _ = self.strong(weak, nothing, int(rng.integers(2**32)))
        return {"weak": _in_unit(weak), "strong": _in_unit(strong)}


class Beside(Dataset[dict[str, torch.Tensor]]):
    """Samples that join those of two datasets with the same number."""

    def __init__(self, first: Dataset[dict[str, torch.Tensor]], second: Dataset[dict[str, torch.Tensor]]) -> None:
        self.first, self.second = first, second

    def __getitem__(self, key: int | SampleIndex) -> dict[str, torch.Tensor]:
        return self.first[key] | self.second[key]


def centres(store: TileStore, n: int, side: int) -> list[torch.Tensor]:
    """Return the middles of some tiles, evenly spaced in the store: (1, 3, H, W) in [0, 1] each.

    Args:
        store: with the field ``image``.
        n: number of tiles; all, if there are fewer.
        side: px, the largest of a middle.
    """
    numbers = np.linspace(0, len(store.rows) - 1, min(n, len(store.rows))).round().astype(int)
    return [_in_unit(_middle(store, int(number), side))[None] for number in numbers]


def _middle(store: TileStore, number: int, side: int) -> Any:
    lengths = store.rows[number]["shapes"]["image"][:2]
    first = [max(0, (length - side) // 2) for length in lengths]
    return store.read(number, "image", (slice(first[0], first[0] + side), slice(first[1], first[1] + side)))


def _in_unit(image: Any) -> torch.Tensor:
    return to_tensor(image.astype(np.float32) / np.float32(255))
