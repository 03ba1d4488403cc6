"""H&E tiles with nuclei in your own folders: images/, instances/ and optionally types/ and tiles.csv."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ihc2he.data.segmentation import Labelled, SegmentationDataModule
from ihc2he.data.sources import Source, sources_of
from ihc2he.data.splits import SPLITS, split_as_published
from ihc2he.data.store import Record
from ihc2he.data.stored import require
from ihc2he.data.tables import pixel_size, read_table, stem
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.images.labels import read_labels
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

COLUMNS = ("split", "um_per_px", "tissue", "source")
BINARY_MASKS = ("error", "split")
TARGET_MPP = 0.25
TEST_SPLITS = (*SPLITS, "all")

HOW_TO_GET = """\
No tiles were found: {images} is not there or holds no image, nor is there a tile store of it at {store}.
Expected this tree, in which the files of a tile have the same name apart from the extension:
  {root}/images/*.png (or JPEG, TIFF): RGB
  {root}/instances/*.png (or TIFF): one channel of whole numbers, a number for each nucleus, 0 = background
  {root}/types/*.png (optional): 1 to the number of data.classes on nuclei, 0 elsewhere
  {root}/tiles.csv (optional): columns name, split (train, val or test), um_per_px, tissue, source
If it lies elsewhere, pass data.root=FOLDER."""


class Tile(NamedTuple):
    """A tile before it is read.

    Attributes:
        name: relative to ``images``, without extension.
        split: "train", "val", "test", or "" if it is not known.
        tissue: or "".
        mpp: um/px of its files.
        files: by role: "images", "instances" and perhaps "types".
        source: the folder that it is from.
        origin: what `source_balanced` balances: the entry ``source`` of the table, or the name of the folder.
    """

    name: str
    split: str
    tissue: str
    mpp: float
    files: dict[str, Path]
    source: Source
    origin: str


@dataclass(kw_only=True, eq=False)
class NucleiDataModule(SegmentationDataModule):
    """Your own annotated H&E tiles; `SegmentationDataModule` documents the batches and the other arguments.

    ``images``, ``instances`` and ``types`` have files with the same names except for the extension. ``tiles.csv`` may
    have more about each tile: ``name``, ``split``, ``um_per_px``, ``tissue``, ``source``; other columns are not read.
    If it has no splits, random fractions of the tiles are held out; tiles of one slide may then be on both sides.

    Args:
        root: folder with ``images`` and the others; or several, as a list of folders or a mapping from a name to a
            folder or to ``root`` with own ``mpp``, ``classes`` (for each value of its types a name of `classes`, or
            None) and ``where``. Nuclei of a folder without types are untyped.
        where: for columns of ``tiles.csv`` the values of the tiles to take, such as a licence; None: all tiles.
        classes: names of the types from 1; None: types are not used.
        mpp: um/px of the files that are not in ``tiles.csv``.
        target_mpp: um/px of the images it yields; tiles of another pixel size are resampled.
        mpp_files: former name of `mpp`; if it is given, `mpp` has its former meaning, `target_mpp`.
        val_fraction: of the tiles, for validation, if ``tiles.csv`` has no splits.
        test_fraction: of the tiles, for testing, if ``tiles.csv`` has no splits.
        binary_masks: for ``instances`` that mark all nuclei by the same number (`marks_nuclei_alike`): "error", or
            "split": in all tiles every connected piece of equal values, also by corners, is a nucleus.
        test_split: the tiles to test on: "test", "val" or "train", or "all" (of a model trained elsewhere).
    """

    root: str | Sequence[str] | Mapping[str, Any]
    where: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None  # type: ignore[assignment]  # a list after __post_init__
    mpp: float | None = None
    target_mpp: float = TARGET_MPP
    mpp_files: float | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    test_split: str = "test"
    binary_masks: str = "error"

    def __post_init__(self) -> None:
        if self.mpp_files is not None:
            self.mpp, self.target_mpp = _as_named_now(self.mpp_files, self.mpp, self.target_mpp)
        self.classes = self.classes or ()
        super().__post_init__()
        require("mpp", self.mpp, self.mpp is None or is_pixel_size(self.mpp), PIXEL_SIZE)
        require("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "from 0 to below 1")
        require("test_fraction", self.test_fraction, 0 <= self.test_fraction < 1, "from 0 to below 1")
        require("test_split", self.test_split, self.test_split in TEST_SPLITS, " or ".join(TEST_SPLITS))
        require("binary_masks", self.binary_masks, self.binary_masks in BINARY_MASKS, " or ".join(BINARY_MASKS))
        self.origins = sources_of(self.root, self.classes, self.mpp, self.where)

    def test_dataloader(self) -> DataLoader:
        if not self.records["test"]:
            folders = ", ".join(str(source.folder) for source in self.origins)
            counts = ", ".join(f"{len(self.records[split])} {split}" for split in ("train", "val"))
            on_val = "data.test_split=val to test on those of the validation, or "
            msg = (
                f"{folders}: found no {self.test_split} tiles to test on (of {counts}). Pass "
                f"{on_val if self.records['val'] else ''}stages=[fit] to train without a test."
            )
            raise DataError(msg)
        return super().test_dataloader()

    def find_tiles(self) -> list[Tile] | None:
        found = [self._tiles_of(source) for source in self.origins]
        if len(found) > 1:
            for source, own in zip(self.origins, found, strict=True):
                if own is None and any(found):
                    msg = f"data.root.{source.name}: {source.folder / 'images'} is not there or holds no image."
                    raise DataError(msg)
        tiles = [tile for own in found for tile in own or ()]
        if not tiles:
            return None
        self.compare_once({tile.files["images"]: tile.mpp for tile in tiles})
        without = [tile for tile in tiles if not tile.split]
        if 0 < len(without) < len(tiles):
            msg = (
                f"{without[0].source.table}: {len(without)} tiles have no split, such as {without[0].name}. Fill the "
                "column split for all tiles, or for none."
            )
            raise DataError(msg)
        return tiles

    def _tiles_of(self, source: Source) -> list[Tile] | None:
        """Return the tiles of a folder, or None if it has no images."""
        images = _by_name(source.folder / "images")
        if not images:
            return None
        roles = {"images": images, "instances": _by_name(source.folder / "instances")}
        if source.classes:
            roles["types"] = _by_name(source.folder / "types")
        elif (source.folder / "types").is_dir() and not self.classes:
            log.warning("%s is not used: data.classes names no types.", source.folder / "types")
        for role, found in roles.items():
            _require_same_names(source.folder / role, found, images)
        chosen = source.chosen(images)
        table = read_table(source.table, tuple(dict.fromkeys((*COLUMNS, *source.where))), images)
        if table:
            _require_same_names(source.table, table, images)
        tiles = [
            self._tile(source, name, table.get(name, {}), {role: files[name] for role, files in roles.items()})
            for name in chosen
        ]
        self._check_mpp(source, tiles, table)
        return tiles

    def _check_mpp(self, source: Source, tiles: Sequence[Tile], table: dict[str, dict[str, str]]) -> None:
        """Refuse a pixel size that no tile has: `mpp` formerly meant `target_mpp`."""
        told = all(row.get("um_per_px") for row in table.values()) and bool(table)
        if not source.name and self.mpp is not None and told and all(tile.mpp != self.mpp for tile in tiles):
            msg = (
                f"data.mpp={self.mpp}: {source.table} tells the pixel size of every file, such as "
                f"{tiles[0].mpp} of {tiles[0].name}. Leave out data.mpp; for images of {self.mpp} um/px pass "
                f"data.target_mpp={self.mpp}."
            )
            raise ConfigError(msg)

    def _tile(self, source: Source, name: str, said: dict[str, str], files: dict[str, Path]) -> Tile:
        split = said.get("split") or ""
        if split not in (*SPLITS, ""):
            msg = f"{source.table}: {name}: split {split!r}, expected {', '.join(SPLITS)} or nothing."
            raise DataError(msg)
        mpp = pixel_size(said.get("um_per_px"), source.mpp, files["images"], source.table)
        origin = said.get("source") or source.name
        return Tile(source.named(name), split, said.get("tissue") or "", mpp, files, source, origin)

    def sources(self, tiles: Sequence[Tile]) -> dict[str, Path]:
        named: dict[str, Path] = {}
        for source in self.origins:
            files = [file for tile in tiles if tile.source is source for file in tile.files.values()]
            files += [source.table] if source.table.is_file() else []
            named |= {source.named(file.relative_to(source.folder).as_posix()): file for file in files}
        return named

    def read_record(self, tile: Tile) -> Record:
        image = read_image(tile.files["images"])
        maps = {role: read_labels(file) for role, file in tile.files.items() if role != "images"}
        for role, labels in maps.items():
            if labels.shape != image.shape[:2]:
                found, expected = ("x".join(map(str, array.shape[1::-1])) for array in (labels, image))
                msg = (
                    f"{tile.files[role]}: {found} px, but its image {tile.files['images']} has {expected}. "
                    "Export both again."
                )
                raise DataError(msg)
        if "types" in maps:
            self._check_types(tile, maps)
            maps["types"] = np.array(tile.source.numbers(self.info.classes), np.int32)[maps["types"]]
        elif self.classes:
            maps["types"] = np.zeros(image.shape[:2], np.int32)
        maps["instances"] = self._instances(maps["instances"], tile.files["instances"])
        row = {"name": tile.name, "split": tile.split, "group": tile.tissue}
        row |= {"source": tile.origin} if tile.origin else {}
        return self._to_record(Labelled(image, maps["instances"], maps.get("types")), tile.mpp, row)

    def _instances(self, labels: NDArray[np.int32], file: Path) -> NDArray[np.int32]:
        pieces = _pieces(labels)
        if self.binary_masks == "split":
            return pieces
        if marks_nuclei_alike(labels, pieces):
            values = np.unique(labels[labels > 0]).tolist()
            msg = (
                f"{file}: found {pieces.max()} separate pieces, but only {len(values)} values ({_first(values)}); "
                "expected a number of its own for each nucleus. If the values mark all nuclei, or their types, pass "
                "data.binary_masks=split: every piece is then a nucleus, so nuclei that touch become one."
            )
            raise DataError(msg)
        return labels

    def _check_types(self, tile: Tile, maps: dict[str, Any]) -> None:
        types, inside, classes = maps["types"], maps["instances"] > 0, tile.source.classes or ()
        if types.max() > len(classes):
            key = f"data.root.{tile.source.name}.classes" if tile.source.name else "data.classes"
            msg = (
                f"{tile.files['types']}: found type {types.max()}, but {key} names only {len(classes)}: "
                f"{', '.join(map(str, classes))}."
            )
            raise DataError(msg)
        untyped, outside = ((inside & (types == 0)).sum(), (~inside & (types > 0)).sum())
        if untyped or outside:
            msg = (
                f"{tile.files['types']}: {untyped} pixels of nuclei have no type, and {outside} pixels outside of "
                f"nuclei have one. Expected a type exactly where {tile.files['instances']} has a nucleus."
            )
            raise DataError(msg)

    def divide(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
        if rows[0]["split"]:  # then all have one
            records = {split: [i for i, row in enumerate(rows) if row["split"] == split] for split in SPLITS}
        else:
            shares = {"test": self.test_fraction, "val": self.val_fraction}
            groups = [row["group"] for row in rows]
            records = split_as_published([""] * len(rows), groups, shares, self.seed)
        if self.test_split == "all":
            records["test"] = list(range(len(rows)))
        else:
            records["test"] = records[self.test_split]
        return records

    def how_to_get(self) -> str:
        folder = self.origins[0].folder
        return HOW_TO_GET.format(images=folder / "images", root=folder, store=self.store_path)

    def settings(self) -> dict[str, Any]:
        split = {"binary_masks": "split"} if self.binary_masks == "split" else {}  # absent from stores made before it
        several = {source.name: source.settings() for source in self.origins if source.name or source.where}
        roots = {"roots": several} if several else {}
        return {"target_mpp": self.target_mpp, "mpp": self.mpp, "classes": self.classes} | split | roots


def _as_named_now(mpp_files: float, mpp: float | None, target_mpp: float) -> tuple[float, float]:
    """Return `mpp` and `target_mpp` for arguments in their former meaning, and log it."""
    require("mpp_files", mpp_files, is_pixel_size(mpp_files), PIXEL_SIZE)
    if mpp is not None and target_mpp != TARGET_MPP:
        msg = (
            f"data.mpp_files={mpp_files}, data.mpp={mpp}, data.target_mpp={target_mpp}: former and present names "
            "together. Pass data.mpp, the pixel size of the files, and data.target_mpp, what the model sees."
        )
        raise ConfigError(msg)
    target = target_mpp if mpp is None else mpp
    log.warning(
        "data.mpp_files=%g is called data.mpp now, and what the model sees data.target_mpp: understood as data.mpp=%g "
        "data.target_mpp=%g.",
        mpp_files, mpp_files, target,
    )  # fmt: skip
    return mpp_files, target


def marks_nuclei_alike(labels: NDArray[np.int32], pieces: NDArray[np.int32]) -> bool:
    """Return whether a map marks several nuclei by the same number, like binary masks and maps of types.

    It does if the only value is 255 and there are at least two pieces, or if there are more than twice as many pieces
    as values, so a nucleus may be cut in two. Pieces up to a tenth of the largest do not count, because they may be
    stray pixels. Of 100 published tiles, none has more than 1.02 pieces per value.

    Args:
        labels: HxW, 0 = background.
        pieces: its connected pieces of equal values, from 1 to n.

    >>> binary = np.array([[255, 0, 255]])
    >>> marks_nuclei_alike(binary, np.array([[1, 0, 2]])), marks_nuclei_alike(binary // 255, np.array([[1, 0, 2]]))
    (True, False)
    """
    areas = np.bincount(pieces[pieces > 0], minlength=1)
    count = int((areas > areas.max() / 10).sum())
    values = np.unique(labels[labels > 0])
    return count > 2 * len(values) or (count > 1 and values.tolist() == [255])


def _pieces(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    from skimage.measure import label

    return label(labels, connectivity=2, background=0).astype(np.int32)


def _first(values: Sequence[int], n: int = 3) -> str:
    return ", ".join(map(str, values[:n])) + (", ..." if len(values) > n else "")


def _by_name(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by their relative path without extension."""
    found: dict[str, Path] = {}
    for file in find_images(folder):
        name = stem(file)
        if name in found:
            msg = f"{folder / file}: there is also {found[name].name}. Leave one file for each name."
            raise DataError(msg)
        found[name] = folder / file
    return found


def _require_same_names(where: Path, found: dict[str, Any], images: dict[str, Path]) -> None:
    for have, lack, problem in ((images, found, "has no"), (found, images, "has a superfluous")):
        lonely = [name for name in have if name not in lack]
        if lonely:
            msg = f"{where}: {problem} {lonely[0]} ({len(lonely)} such); expected one for each file in images/."
            raise DataError(msg)
