"""Simulated PanNuke: H&E of 19 tissues in three folds, with six-channel masks, 0.25 um/px."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ihc2he.files import complete
from ihc2he.images.writing import write_png
from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_he, tile_rng, write_truth
from ihc2he.simulate.tissue import ORGANS, TYPES, Marker
from ihc2he.simulate.writing import open_simulation, read_image, run, share_out

MPP = 0.25
FOLDS = (2656, 2523, 2722)  # published tiles per fold
# Number of published tiles of each tissue, over all folds.
TISSUES = {
    "Adrenal_gland": 437,
    "Bile-duct": 420,
    "Bladder": 146,
    "Breast": 2351,
    "Cervix": 293,
    "Colon": 1440,
    "Esophagus": 424,
    "HeadNeck": 384,
    "Kidney": 134,
    "Liver": 224,
    "Lung": 184,
    "Ovarian": 146,
    "Pancreatic": 195,
    "Prostate": 182,
    "Skin": 187,
    "Stomach": 146,
    "Testis": 196,
    "Thyroid": 226,
    "Uterus": 186,
}
_CASES_PER_TISSUE = 6


@dataclass(frozen=True)
class _Tile:
    out: Path
    fold: int  # 1 to 3
    row: int
    tissue: str
    index: int  # over all folds
    size: int
    seed: int

    @property
    def name(self) -> str:
        return f"Fold {self.fold}/images/fold{self.fold}/{self.row:05d}.png"

    @property
    def image(self) -> Path:
        return self.out / "truth" / "he" / self.name


def write_pannuke(out: Path | str, tiles: int, size: int = 256, seed: int = 0, *, workers: int = 1) -> Path:
    """Return `out` after writing tiles in the public layout of PanNuke, and their truth.

    ``Fold <k>/{images,masks}/fold<k>/{images,types,masks}.npy``; images and masks are float64 as published, folds and
    tissues in the published ratio. Under ``truth``: image, instances, types and markers of each tile as single files.
    If a call is killed, the same call continues it.

    Args:
        out: folder to write to.
        tiles: number of tiles over the three folds.
        size: side of a tile in pixels.
        seed: the same seed gives the same bytes.
        workers: number of processes.

    Raises:
        DataError: if `out` holds something else.
    """
    out = open_simulation(out, "Fold 1", "pannuke", tiles, size, seed)
    rng = np.random.default_rng([seed, tiles])
    tissues = rng.permutation(np.repeat(list(TISSUES), share_out(tiles, TISSUES.values())))
    folds, index = [], 0
    for fold, n in enumerate(share_out(tiles, FOLDS), 1):
        folds.append([_Tile(out, fold, i, str(tissues[index + i]), index + i, size, seed) for i in range(n)])
        index += n
    run(_draw, [tile for fold in folds for tile in fold if not tile.image.exists()], workers, "PanNuke")
    for fold, tiles_of_fold in enumerate(folds, 1):
        _assemble(out, fold, tiles_of_fold, size)
    return out


def _draw(tile: _Tile) -> None:
    organ = ORGANS[tile.tissue]
    number = list(TISSUES).index(tile.tissue) * 1000 + tile.row % _CASES_PER_TISSUE
    case = draw_case(organ, Marker("nucleus"), tile.seed, number)
    rng = tile_rng(tile.seed, tile.index)
    section = cut(draw_block(case.tissue, tile.size, MPP, rng), rng)
    write_truth(tile.out, tile.name, section, case)
    write_png(tile.image, photograph_he(section, case, rng))


def _assemble(out: Path, fold: int, tiles: list[_Tile], size: int) -> None:
    """Pack the single files of a fold into its three arrays, row by row, so that only one tile is in memory."""
    images = out / f"Fold {fold}" / "images" / f"fold{fold}" / "images.npy"
    masks = out / f"Fold {fold}" / "masks" / f"fold{fold}" / "masks.npy"
    tissues = np.array([tile.tissue for tile in tiles], dtype=np.str_)
    _save(images.with_name("types.npy"), tissues.shape, tissues.dtype, lambda array: np.copyto(array, tissues))

    def fill_images(array: NDArray[np.float64]) -> None:
        for tile in tiles:
            array[tile.row] = read_image(tile.image)

    def fill_masks(array: NDArray[np.float64]) -> None:
        for tile in tiles:
            array[tile.row] = _channels(*(read_image(out / "truth" / k / tile.name) for k in ("instances", "types")))

    _save(images, (len(tiles), size, size, 3), np.dtype(np.float64), fill_images)
    _save(masks, (len(tiles), size, size, 6), np.dtype(np.float64), fill_masks)


def _channels(instances_hw: NDArray[np.uint16], types_hw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Masks as published: one channel of ids per type, then 1 on background and 0 on nuclei."""
    channels = [np.where(types_hw == kind, instances_hw, 0) for kind in range(1, len(TYPES) + 1)]
    return np.stack([*channels, instances_hw == 0], -1).astype(np.float64)


def _save(path: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[NDArray], None]) -> None:
    if path.exists():
        return
    with complete(path) as temporary:
        if 0 in shape:  # an empty file cannot be mapped
            with temporary.open("wb") as file:
                np.save(file, np.zeros(shape, dtype))
        else:
            array = open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            fill(array)
            array.flush()
