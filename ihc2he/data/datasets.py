"""Datasets of the translation models: unpaired training crops and whole tiles for evaluation."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ihc2he.data.samplers import SampleIndex
from ihc2he.data.store import TileStore
from ihc2he.data.transforms import augment, normalise

if TYPE_CHECKING:
    import albumentations


class TrainingCrops(Dataset[dict[str, torch.Tensor]]):
    """Random crops of IHC tiles, each with a crop of an H&E tile drawn independently of it.

    Everything random is a pure function of (seed, epoch, index): the H&E tile, both windows and both augmentations.

    Args:
        store: with fields ``ihc`` and ``he``.
        ihc: record numbers of the IHC tiles; index i stands for tile i modulo their number.
        he: record numbers of the H&E tiles.
        crop_size: side of the crops in px.
        transform: from uint8 HxWx3 to float32 in [-1, 1].
        seed: of all of the above.
        he_weights: one per H&E tile, to draw them in proportion; uniform where None.
        paired: take the same window, with the same augmentation, from the H&E array of the same record.
    """

    def __init__(
        self,
        store: TileStore,
        *,
        ihc: Sequence[int],
        he: Sequence[int],
        crop_size: int,
        transform: "albumentations.Compose",
        seed: int,
        he_weights: Sequence[float] | None = None,
        paired: bool = False,
    ) -> None:
        self.store = store
        self.ihc = ihc
        self.he = he
        self.crop_size = crop_size
        self.transform = transform
        self.seed = seed
        self.he_cumulative = None if he_weights is None else list(accumulate(he_weights))
        self.paired = paired

    def __len__(self) -> int:
        return max(len(self.ihc), len(self.he))

    def __getitem__(self, key: int | SampleIndex) -> dict[str, torch.Tensor]:
        epoch, index = key if isinstance(key, SampleIndex) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, index))
        ihc_seed, he_seed = (int(seed) for seed in rng.integers(2**32, size=2))
        ihc = self.ihc[index % len(self.ihc)]
        he = self._draw_he(rng)
        if self.paired:
            he, he_seed = ihc, ihc_seed
        return {"ihc": self._crop(ihc, "ihc", ihc_seed), "he": self._crop(he, "he", he_seed)}

    def _draw_he(self, rng: np.random.Generator) -> int:
        if self.he_cumulative is None:
            return self.he[int(rng.integers(len(self.he)))]
        drawn = rng.random() * self.he_cumulative[-1]
        return self.he[min(int(np.searchsorted(self.he_cumulative, drawn, side="right")), len(self.he) - 1)]

    def _crop(self, number: int, field: str, seed: int) -> torch.Tensor:
        height, width = self.store.rows[number]["shapes"][field][:2]
        top, left = np.random.default_rng(seed).integers((height - self.crop_size + 1, width - self.crop_size + 1))
        window = (slice(top, top + self.crop_size), slice(left, left + self.crop_size))
        return augment(self.transform, self.store.read(number, field, window), seed)


class WholeTiles(Dataset[dict[str, Any]]):
    """Every IHC tile once, whole, with the H&E tile at the same position (counted round where there are fewer).

    ``paired`` says whether both are the same record, that is, show the same place.
    """

    def __init__(self, store: TileStore, ihc: Sequence[int], he: Sequence[int]) -> None:
        self.store = store
        self.ihc = ihc
        self.he = he

    def __len__(self) -> int:
        return len(self.ihc) if self.he else 0

    def __getitem__(self, key: int | SampleIndex) -> dict[str, Any]:
        index = key.index if isinstance(key, SampleIndex) else key
        ihc, he = self.ihc[index], self.he[index % len(self.he)]
        row = self.store.rows[ihc]
        return {
            "ihc": normalise(self.store.read(ihc, "ihc")),
            "he": normalise(self.store.read(he, "he")),
            "name": row["name"],
            "group": row["group"],
            "paired": ihc == he,
        }
