"""A share of the training crops of H&E painted as IHC, labels kept; see `ihc2he.stain.painting`."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.reference import ReferenceTile, reference_tiles
from ihc2he.errors import ConfigError, did_you_mean, require_setting
from ihc2he.stain.looks import Look, Ranges, draw_look, look_like
from ihc2he.stain.measuring import Vector
from ihc2he.stain.painting import paint_as
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

_KEY = "data.augmentation.paint"
_STREAM = 0x9A17  # of random numbers, so that painting changes no other augmentation


class Painter:
    """Paints crops of H&E as IHC: of slides that differ as ranges say, or like the tiles of a reference.

    Args:
        mpp: um/px of the crops.
        share: of the crops that are painted; 0 = none.
        ranges: arguments of `ihc2he.stain.looks.Ranges`; what is missing has its default.
        reference: folder of unlabelled IHC tiles; each painted crop has the stains of one of them, and the ranges say
            what was not measured; None: the ranges say all.
        reference_mpp: um/px of these tiles; None: as the TIFF states.
        store: folder for the measurements of the reference.

    Attributes:
        tiles: of the reference, known after `prepare`.

    Raises:
        ConfigError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        mpp: float,
        share: float = 0.5,
        ranges: Mapping[str, Any] | None = None,
        reference: str | None = None,
        reference_mpp: float | None = None,
        store: str = ".",
    ) -> None:
        require_setting(_KEY, "share", share, 0 <= share <= 1, "from 0 to 1")
        require_setting(_KEY, "mpp", mpp, is_pixel_size(mpp), PIXEL_SIZE)
        require_setting(
            _KEY, "reference_mpp", reference_mpp, reference_mpp is None or is_pixel_size(reference_mpp), PIXEL_SIZE
        )
        self.mpp = mpp
        self.share = share
        self.ranges = _ranges(ranges or {})
        self.reference = None if reference is None else Path(reference).expanduser()
        self.reference_mpp = reference_mpp
        self.store = Path(store).expanduser()
        self.tiles: list[ReferenceTile] = []
        self._blue: list[Vector] = []  # hematoxylin of the tiles that show it

    def prepare(self) -> None:
        """Measure the stains of the reference, or read an earlier measurement."""
        if self.share and self.reference is not None and not self.tiles:
            self.tiles = reference_tiles(self.reference, self.reference_mpp, self.store)
            self._blue = [tile.stains.hematoxylin for tile in self.tiles if tile.stains.hematoxylin is not None]

    def __call__(
        self, image: NDArray[np.uint8], inst_hw: NDArray[np.int32], type_hw: NDArray[np.int32] | None, seed: int
    ) -> NDArray[np.uint8]:
        """Return a crop, painted or as it is; the same seed gives the same.

        Args:
            image: HxWx3 uint8 RGB.
            inst_hw: nuclei from 1, 0 = background.
            type_hw: their types, or None.
            seed: of all randomness.
        """
        rng = np.random.default_rng((seed, _STREAM))
        return self.paint(image, inst_hw, type_hw, rng) if rng.random() < self.share else image

    def paints(self, seed: int) -> bool:
        """Return whether a call with this seed paints."""
        return bool(np.random.default_rng((seed, _STREAM)).random() < self.share)

    def paint(
        self,
        image: NDArray[np.uint8],
        inst_hw: NDArray[np.int32],
        type_hw: NDArray[np.int32] | None,
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """Return a painted crop; the arguments are those of a call.

        Raises:
            ConfigError: before `prepare`.
        """
        return paint_as(self._look(rng), image, inst_hw, self.mpp, rng, type_hw)

    def _look(self, rng: np.random.Generator) -> Look:
        if self.reference is None:
            return draw_look(self.ranges, rng)
        if not self.tiles:
            msg = f"The reference {self.reference} is not measured yet. Call prepare() before painting."
            raise ConfigError(msg)
        stains = self.tiles[rng.integers(len(self.tiles))].stains
        if stains.hematoxylin is None and self._blue:
            stains = replace(stains, hematoxylin=self._blue[rng.integers(len(self._blue))])
        return look_like(stains, self.ranges, rng)


def _ranges(given: Mapping[str, Any]) -> Ranges:
    known = [one.name for one in fields(Ranges)]
    for name in given:
        if name not in known:
            msg = f"{_KEY}.ranges.{name}: there is no such range.{did_you_mean(name, known)}"
            raise ConfigError(msg)
    return Ranges(**{name: _tuples(value) for name, value in given.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
