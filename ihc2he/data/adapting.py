"""Annotated H&E, and unlabelled IHC beside it, to which a trained network is adapted."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from ihc2he.build import build
from ihc2he.data.augmentation import NucleiAugmentation
from ihc2he.data.nuclei import NucleiDataModule
from ihc2he.data.store import TileStore
from ihc2he.data.stored import require
from ihc2he.data.unlabelled import Beside, UnlabelledTiles, Views, centres
from ihc2he.errors import ConfigError
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

GUARD_PX = 256  # largest side of what the guard looks at


@dataclass(kw_only=True, eq=False)
class AdaptingDataModule(NucleiDataModule):
    """The batches of `NucleiDataModule`, and in those of the training two views of unlabelled IHC.

    A training batch also has ``weak`` and ``strong``, (N, 3, H, W) float32 in [0, 1]: views of the same crops of IHC,
    moved alike, the strong one also changed in colour and sharpness. Labels of the IHC are never read.

    Args:
        ihc: folder of unlabelled IHC: PNG, JPEG or TIFF, also in sub-folders.
        ihc_mpp: um/px of these files; None: as the TIFF states.
        weak: a `NucleiAugmentation`, or its configuration, for both views.
        strong: likewise, for the strong view on top; it must move nothing.
        guard_tiles: number of tiles of IHC on which `ihc2he.callbacks.guard.DriftGuard` compares networks.

    Raises:
        ConfigError: without a folder, or for a value outside its range.
    """

    ihc: str | None = None
    ihc_mpp: float | None = None
    weak: dict[str, Any] | NucleiAugmentation
    strong: dict[str, Any] | NucleiAugmentation
    guard_tiles: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ihc is None:
            msg = "data.ihc is not given: pass a folder of unlabelled tiles of your IHC, and data.ihc_mpp in um/px."
            raise ConfigError(msg)
        require("ihc_mpp", self.ihc_mpp, self.ihc_mpp is None or is_pixel_size(self.ihc_mpp), PIXEL_SIZE)
        require("guard_tiles", self.guard_tiles, self.guard_tiles >= 1, "1 or more")
        self._weak, self._strong = build(self.weak, NucleiAugmentation), build(self.strong, NucleiAugmentation)
        if self._strong.moves:
            msg = "data.strong: it may change colour and sharpness only. Pass dihedral=false, scale=0 and elastic=0."
            raise ConfigError(msg)
        self.unlabelled = UnlabelledTiles(
            store=str(self.store_folder / "ihc"),
            target_mpp=self.target_mpp,
            folder=self.ihc,
            mpp=self.ihc_mpp,
            rebuild=self.rebuild,
        )

    def prepare_data(self) -> None:
        """Build both stores, or check that they still fit their sources."""
        super().prepare_data()
        self.unlabelled.prepare_data()

    def training_set(self) -> Dataset[dict[str, torch.Tensor]]:
        """Return crops of H&E with their targets and two views of IHC."""
        views = Views(
            TileStore(self.unlabelled.store_path),
            crop_size=self.crop_size,
            weak=self._weak,
            strong=self._strong,
            seed=self.seed,
        )
        return Beside(super().training_set(), views)

    def guarded(self) -> list[torch.Tensor]:
        """Return the same tiles of IHC each time, (1, 3, H, W) in [0, 1]."""
        return centres(TileStore(self.unlabelled.store_path), self.guard_tiles, GUARD_PX)
