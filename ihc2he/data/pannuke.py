"""PanNuke: H&E tiles of 19 tissues with nuclei of five types, Gamper et al., arXiv:2003.10778.

7,901 tiles of 256 x 256 px at 0.25 um/px in three folds of 2,656, 2,523 and 2,722, about 190,000 nuclei. The masks have
six channels: the nuclei of each type with ids of their own, and the background. Images and masks are float64 arrays of
12.5 GB per fold; they are read tile by tile through memory maps that are closed at once.

Where nuclei of two types overlap, the later channel wins, as in the `binarize` of PanNuke's official metrics, so the
instance maps are those of its bPQ. Its PQ of one class takes that class's channel as it is; there
a nucleus keeps the pixels that it loses here. Overlaps are rare; `index.csv` counts their pixels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.download import download, unpack
from ihc2he.data.segmentation import Labelled, SegmentationDataModule
from ihc2he.data.store import Record, TileStore
from ihc2he.data.stored import require, require_native
from ihc2he.errors import DataError
from ihc2he.files import exclusive
from ihc2he.images.labels import MAX_LABEL, number_consecutively

log = logging.getLogger(__name__)

NATIVE_MPP = 0.25
CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")  # in the order of the mask channels
FOLDS = (1, 2, 3)
# Training, validation and test fold of each published split. Fold 3 is tested on twice, fold 2 never.
SPLITS = {1: (1, 2, 3), 2: (2, 1, 3), 3: (3, 2, 1)}
PUBLISHED = {1: 2656, 2: 2523, 3: 2722}  # tiles per fold
URL = "https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke/fold_{fold}.zip"

HOW_TO_GET = """\
PanNuke was not found under {root} ({found}), and there is no tile store of it at {store}.
Pass data.download=true to fetch it (37 GB when unpacked), or get the three archives from
  https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke
Licence: CC BY-NC-SA 4.0, non-commercial use only; cite arXiv:2003.10778.
Expected this tree (k = 1, 2, 3):
  {root}/Fold k/images/foldk/images.npy, types.npy
  {root}/Fold k/masks/foldk/masks.npy
If it lies elsewhere, pass data.root=/path/to/pannuke.
To try the program without it, pass data=pannuke_sim: simulated tissue in the same layout."""


class Fold(NamedTuple):
    """The files of a fold."""

    images: Path
    masks: Path
    tissues: Path


class Tile(NamedTuple):
    """A tile of the dataset before it is read: a row of the arrays of a fold."""

    fold: int
    row: int
    tissue: str


def fold_files(root: Path, fold: int) -> Fold:
    """Return where the files of a fold are in the published layout.

    >>> fold_files(Path("pannuke"), 2).masks.as_posix()
    'pannuke/Fold 2/masks/fold2/masks.npy'
    """
    home = root / f"Fold {fold}"
    images, masks = home / "images" / f"fold{fold}", home / "masks" / f"fold{fold}"
    return Fold(images / "images.npy", masks / "masks.npy", images / "types.npy")


def merge_channels(mask_hwc: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Return the instance map, the type map, and the number of pixels with more than one nucleus.

    The later channel wins. Instances are numbered by channel, then by id, from 1; one that is completely covered
    by others is lost.

    Args:
        mask_hwc: ids of the nuclei of each type in a channel of its own, 0 = none.

    >>> inst, types, overlap = merge_channels(np.array([[[9, 0], [9, 4], [0, 4], [0, 0]]]))
    >>> inst.tolist(), types.tolist(), overlap
    ([[1, 2, 2, 0]], [[1, 2, 2, 0]], 1)
    """
    claimed_hwc = mask_hwc > 0
    n = mask_hwc.shape[-1]
    last_hw = n - 1 - claimed_hwc[..., ::-1].argmax(-1)
    type_hw = np.where(claimed_hwc.any(-1), last_hw + 1, 0)
    id_hw = np.take_along_axis(mask_hwc, last_hw[..., None], -1)[..., 0].astype(np.int64)
    inst_hw = number_consecutively(type_hw * (id_hw.max() + 1) + id_hw)
    return inst_hw, type_hw.astype(np.int32), int((claimed_hwc.sum(-1) > 1).sum())


@dataclass(kw_only=True, eq=False)
class PanNukeDataModule(SegmentationDataModule):
    """PanNuke in its published layout; `SegmentationDataModule` documents the batches and the other arguments.

    Args:
        root: folder with ``Fold 1``, ``Fold 2`` and ``Fold 3``.
        split: 1, 2 or 3: training, validation and test folds 1/2/3, 2/1/3 or 3/2/1, as published. One store serves all.
        download: fetch missing files.
        simulate: arguments of `ihc2he.simulate.pannuke.write_pannuke` (tiles, size, seed), to fill ``root`` with
            simulated tissue instead.
        mpp: um/px of the files: 0.25.
        target_mpp: um/px of the images it yields; other than 0.25 resamples the tiles.
    """

    root: str
    split: int = 1
    download: bool = False
    simulate: dict[str, Any] | None = None
    mpp: float = NATIVE_MPP
    target_mpp: float = NATIVE_MPP
    batch_size: int = 16
    eval_batch_size: int = 16
    classes: Sequence[str] = field(default=CLASSES, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_native(self.mpp, NATIVE_MPP)
        require("split", self.split, self.split in SPLITS, "1, 2 or 3")
        self.folder = Path(self.root).expanduser()

    def prepare_data(self) -> None:
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        if self.simulate is not None:
            from ihc2he.simulate.pannuke import write_pannuke

            with exclusive(lock):
                write_pannuke(self.folder, **self.simulate)
        elif self.download and not self.store_path.is_file():
            with exclusive(lock):
                fetch(self.folder)
        super().prepare_data()
        if self.simulate is None:
            warn_of_counts(TileStore(self.store_path).rows)

    def find_tiles(self) -> list[Tile] | None:
        if not any(file.is_file() for fold in FOLDS for file in fold_files(self.folder, fold)):
            return None
        return [tile for fold in FOLDS for tile in _tiles_of(fold_files(self.folder, fold), fold)]

    def sources(self, tiles: Sequence[Tile]) -> dict[str, Path]:
        files = [file for fold in FOLDS for file in fold_files(self.folder, fold)]
        return {file.relative_to(self.folder).as_posix(): file for file in files}

    def read_record(self, tile: Tile) -> Record:
        files = fold_files(self.folder, tile.fold)
        image = _whole_numbers(files.images, tile.row, 255)
        mask_hwc = _whole_numbers(files.masks, tile.row, MAX_LABEL)[..., : len(CLASSES)]
        inst_hw, type_hw, overlap_px = merge_channels(mask_hwc)
        name = f"fold{tile.fold}_{tile.row:04d}"
        row = {"name": name, "split": f"fold {tile.fold}", "group": tile.tissue, "overlap_px": overlap_px}
        return self._to_record(Labelled(image.astype(np.uint8), inst_hw, type_hw), NATIVE_MPP, row)

    def divide(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
        return {
            name: [i for i, row in enumerate(rows) if row["split"] == f"fold {fold}"]
            for name, fold in zip(("train", "val", "test"), SPLITS[self.split], strict=True)
        }

    def how_to_get(self) -> str:
        found = (
            ", ".join(sorted(path.name for path in self.folder.iterdir())[:8]) if self.folder.is_dir() else "no folder"
        )
        return HOW_TO_GET.format(root=self.folder, found=f"found: {found or 'nothing'}", store=self.store_path)

    def settings(self) -> dict[str, Any]:
        return {"target_mpp": self.target_mpp}


def fetch(root: Path) -> None:
    """Download and unpack the folds that are not there; the archives and their checksums stay in the folder."""
    for fold in FOLDS:
        if not all(file.is_file() for file in fold_files(root, fold)):
            archive = root / f"fold_{fold}.zip"
            download(URL.format(fold=fold), archive)
            unpack(archive, root)


def warn_of_counts(rows: Sequence[dict[str, Any]]) -> None:
    """Log a warning if the number of tiles is not as published."""
    counts = {fold: sum(row["split"] == f"fold {fold}" for row in rows) for fold in FOLDS}
    different = [f"fold {fold} {counts[fold]} (published {n})" for fold, n in PUBLISHED.items() if counts[fold] != n]
    if different:
        log.warning("This is not all of PanNuke as published: %s tiles.", ", ".join(different))


def _tiles_of(files: Fold, fold: int) -> list[Tile]:
    """Return the tiles of a fold after checking that its arrays have the published shapes and fit each other."""
    images, masks, tissues = (_open(file) for file in files)
    size = images.shape[:3]
    _require_array(files.images, images, (*size, 3), "fui")
    _require_array(files.masks, masks, (*size, len(CLASSES) + 1), "fui")
    _require_array(files.tissues, tissues, size[:1], "U")
    return [Tile(fold, i, str(tissue)) for i, tissue in enumerate(tissues)]


def _require_array(file: Path, array: NDArray[Any], shape: tuple[int, ...], kinds: str) -> None:
    if array.shape != shape or array.dtype.kind not in kinds:
        content = "texts" if kinds == "U" else "numbers"
        found = f"{array.shape} of {array.dtype}"
        msg = f"{file}: found {found}, expected {shape} of {content}. Download and unpack it again."
        raise DataError(msg)


def _open(file: Path) -> NDArray[Any]:
    if not file.is_file():
        msg = (
            f"{file}: missing; all three folds are needed. Pass data.download=true, or unpack fold_1.zip, fold_2.zip "
            f"and fold_3.zip into one folder."
        )
        raise DataError(msg)
    try:
        array = np.load(file, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        msg = f"{file}: not a readable NumPy array ({error}). Download and unpack it again."
        raise DataError(msg) from error
    if not isinstance(array, np.ndarray):
        msg = f"{file}: found an archive of several arrays, expected one. Download and unpack it again."
        raise DataError(msg)
    return array


def _whole_numbers(file: Path, index: int, limit: int) -> NDArray[np.int32]:
    """Return one row of an array of whole numbers in [0, limit].

    The memory map is closed after each row, so that the pages of a fold do not fill the memory.
    """
    values = np.array(_open(file)[index])
    low, high = values.min(), values.max()  # NaN if any is
    if not (low >= 0 and high <= limit):
        found = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
        msg = f"{file}, index {index}: found {found}, expected 0 to {limit}. Download and unpack it again."
        raise DataError(msg)
    whole = values.astype(np.int32)
    if (whole != values).any():
        example = values[whole != values][0]
        msg = (
            f"{file}, index {index}: found {example:g}, expected whole numbers from 0 to {limit}. If the array was "
            "scaled, use the published one."
        )
        raise DataError(msg)
    return whole
