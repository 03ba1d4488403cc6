"""EndoNuke: IHC tiles of endometrium with nuclei as keypoints, Naumov et al., Data 2022, 7(6):75.

1,780 tiles of 100 x 100 um from slides of 12 patients, nuclear DAB for ER or PR: 1,606 of 200 px (0.5 um/px), 174 of
400 px (0.25 um/px). 1,740 have one annotator (pathologists ptg1 to ptg3, students stud1 to stud4) and 210,419 points;
40 were read by all seven, in three studies of agreement. Names of tiles do not contain the patient, but the
tiles of a slide have consecutive numbers.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.download import download, unpack
from ihc2he.data.endonuke_layout import CLASSES, Label, find_files, find_home, listed_labels, master_files, read_label
from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.points import POLICIES, Faults, PointTile, keep_good, read_point_tile
from ihc2he.data.stored import require
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.files import exclusive
from ihc2he.images.decoding import image_size
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size

log = logging.getLogger(__name__)

SIDE_UM = 100.0
PUBLISHED_MPP = (0.5, 0.25)
BLOCK_GAP = 50  # the largest gap found within a run of numbers is 22, the smallest between two runs 212
TRUTH = {"inst": "instances", "type": "types", "he": "he"}  # folders of simulated tissue, by key of the batch
URL = "https://www.ispras.ru/conf/endonuke/data.zip"
LICENCE = "EndoNuke is licensed CC BY 4.0: cite Naumov et al., Data 2022, 7(6):75."

HOW_TO_GET = """\
EndoNuke was not found under {root} ({found}).
Pass data.download=true to fetch it, or get {url} and unpack it there.
Licence: CC BY 4.0; cite Naumov et al., Data 2022, 7(6):75.
Expected this tree, below {root} or a folder data in it:
  dataset/images/<number>.png
  dataset/labels/<split>/<annotator>/<number>.txt, a line "x y class" for each nucleus
  dataset/files_lists and master_ymls (optional): which tiles belong to unique, bulk, agreement and so on
If it lies elsewhere, pass data.root=/path/to/endonuke.
To try the program without it, pass data=endonuke_sim: simulated tissue in the same layout."""


class EndoNukeDataModule(WholeTilesDataModule):
    """EndoNuke in its published layout; `PointsDataModule` documents the batches.

    Of several annotations of a tile in the subset, the reference is the one in the list ``unique``; otherwise that of a
    pathologist comes before others, then the first by name. ``readers`` has all annotations, also those outside of the
    subset; a second annotation by the same annotator is called "annotator (split)". The group is the run of tile
    numbers that a tile belongs to, such as "321-456", a stand-in for its slide. Of simulated tissue it is the case, and
    a batch also has ``inst`` and ``type`` (HxW int32) and ``he``, the aligned H&E (HxWx3 uint8 RGB).

    Args:
        root: folder of the dataset, or the one above it.
        subset: name of a list in ``master_ymls`` or of a folder of ``labels``. "unique" and "everything" are all tiles
            where there are no lists.
        annotators: whose labels to use; None: all.
        ids: numbers and ranges such as "321-456" of the tiles to test on; None: all but those of `val_ids`.
        val_ids: the same of the tiles to validate on; None: none.
        mpp: um/px of all tiles; None: computed, because a tile shows 100 um.
        bad_labels: "repeated": points that come twice are left out, whatever else is wrong is an error; "skip": all
            that is wrong is left out; "error": nothing is. What is left out is counted in one warning.
        download: fetch the dataset if it is not there.
        simulate: arguments of `ihc2he.simulate.endonuke.write_endonuke` (tiles, size, seed), to fill ``root`` with
            simulated tissue instead.
        batch_size: tiles per batch and process.
        num_workers: processes that load tiles.

    Attributes:
        classes: names of the points' classes.
        truth_classes: names of the values of ``type`` from 1; empty for real tissue.
    """

    def __init__(
        self,
        *,
        root: str,
        subset: str = "unique",
        annotators: Sequence[str] | None = None,
        ids: Sequence[str | int] | None = None,
        val_ids: Sequence[str | int] | None = None,
        mpp: float | None = None,
        bad_labels: str = "repeated",
        download: bool = False,
        simulate: dict[str, Any] | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        require("mpp", mpp, mpp is None or is_pixel_size(mpp), PIXEL_SIZE)
        require("bad_labels", bad_labels, bad_labels in POLICIES, " or ".join(POLICIES))
        for name, value in (("annotators", annotators), ("ids", ids), ("val_ids", val_ids)):
            require(name, value, not isinstance(value, str | int), f"a list: data.{name}=[{value}]")
        self.root = Path(root).expanduser()
        self.subset = subset
        self.annotators = annotators
        self.ids = ids
        self.val_ids = val_ids
        self.mpp = mpp
        self.bad_labels = bad_labels
        self.download = download
        self.simulate = simulate
        self.classes = list(CLASSES)
        self.truth_classes: list[str] = []
        self.tiles: dict[str, list[PointTile]] = {}

    @property
    def info(self) -> DataInfo:
        """What models, callbacks and the runner can know about the images."""
        return DataInfo(self.mpp, self.classes, self.truth_classes)

    def prepare_data(self) -> None:
        """Simulate or download the dataset, if asked."""
        lock = self.root.with_name(f"{self.root.name}.lock")
        if self.simulate is not None:
            from ihc2he.simulate.endonuke import write_endonuke

            with exclusive(lock):
                write_endonuke(self.root, **self.simulate)
        elif self.download:
            with exclusive(lock):
                if find_home(self.root) is None:
                    fetch(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Choose the tiles, and read and check their labels; does not read the pixels of PNG files."""
        if self.tiles:
            return
        home = find_home(self.root)
        if home is None:
            found = ", ".join(sorted(p.name for p in self.root.iterdir())[:8]) if self.root.is_dir() else "no folder"
            raise DataError(HOW_TO_GET.format(root=self.root, found=f"found: {found or 'nothing'}", url=URL))
        faults = Faults(self.bad_labels, "Correct it, or pass data.bad_labels=skip to leave out and count such items.")
        images, labels = find_files(home, faults)
        side_um, groups, self.truth_classes = _what_is_known(home, images)
        labels = self._of_annotators(labels)
        chosen = {label for label in self._chosen(home, labels, faults) if label.number in images}
        annotations = _by_tile(labels, chosen, listed_labels(home, "unique") or set())

        def tile(number: int) -> PointTile:
            image = images[number]
            size = image_size(image)
            readers: dict[str, NDArray[np.int64]] = {}
            again = []
            for label in annotations[number]:
                name = label.annotator
                if name in readers:
                    name = f"{label.annotator} ({label.split})"
                    again.append(name)
                readers[name] = keep_good(read_label(labels[label], faults), size, labels[label], faults)
            reference_n3 = next(iter(readers.values()))
            mpp = self.mpp or _pixel_size(image, size, side_um)
            truth = {key: home / "truth" / folder / image.relative_to(home) for key, folder in TRUTH.items()}
            known = truth if self.truth_classes else {}
            return PointTile(str(number), groups[number], image, mpp, reference_n3, readers, known, tuple(again))

        numbers = self._divided(sorted({label.number for label in chosen}))
        self.tiles = {split: [tile(number) for number in numbers[split]] for split in numbers}
        faults.report(home)
        _log_counts(self.subset, self.tiles["test"])

    def val_dataloader(self) -> TileLoader:
        if not self.tiles["val"]:
            msg = "There is nothing to validate on: pass data.val_ids, such as [668-784]; they are never tested on."
            raise ConfigError(msg)
        return self._loader(self.tiles["val"], read_point_tile)

    def test_dataloader(self) -> TileLoader:
        return self._loader(self.tiles["test"], read_point_tile)

    def _of_annotators(self, labels: dict[Label, Path]) -> dict[Label, Path]:
        if self.annotators is None:
            return labels
        known = {label.annotator for label in labels}
        for name in self.annotators:
            require("annotators", self.annotators, name in known, f"annotators with labels.{did_you_mean(name, known)}")
        return {label: path for label, path in labels.items() if label.annotator in self.annotators}

    def _chosen(self, home: Path, labels: dict[Label, Path], faults: Faults) -> set[Label]:
        """Return the labels of the subset."""
        named = listed_labels(home, self.subset)
        if named is not None:
            for split, annotator, number in sorted(named - labels.keys()):
                if self.annotators is None or annotator in self.annotators:
                    what = f"{home}: the list {self.subset} names {split}/{annotator}/{number}.txt, which is missing."
                    faults.add("listed labels without a file", what)
            return named & labels.keys()
        lists = {path.stem for path in master_files(home)}
        if not lists and self.subset in ("unique", "everything"):
            return set(labels)
        splits = {label.split for label in labels}
        if self.subset not in splits:
            known = lists | splits | (set() if lists else {"unique", "everything"})
            msg = f"data.subset={self.subset}: {home} has no such list or split.{did_you_mean(self.subset, known)}"
            raise ConfigError(msg)
        return {label for label in labels if label.split == self.subset}

    def _divided(self, available: Sequence[int]) -> dict[str, list[int]]:
        """Return the numbers of the tiles to test and to validate on."""
        val = parse_ids("val_ids", self.val_ids or (), available)
        test = sorted(set(available) - set(val)) if self.ids is None else parse_ids("ids", self.ids, available)
        if both := sorted(set(test) & set(val)):
            msg = (
                f"data.ids and data.val_ids share {len(both)} tiles, such as {both[0]}. "
                "Tiles for choosing settings must not be tested on: remove them from one of the two."
            )
            raise ConfigError(msg)
        if not test:
            msg = (
                f"{self.root}: no tile to test on is left of {len(available)} in data.subset={self.subset} of "
                f"data.annotators={self.annotators}, with data.val_ids={self.val_ids}. Choose more."
            )
            raise ConfigError(msg)
        return {"test": test, "val": val}


def fetch(root: Path) -> None:
    """Download and unpack the dataset; the archive and its checksum stay in the folder.

    It unpacks next to the final folder, so that an existing folder is always complete.
    """
    log.info(LICENCE)
    archive, unpacked = root / "data.zip", root / "unpacked.part"
    download(URL, archive)
    unpack(archive, unpacked)
    for path in sorted(unpacked.iterdir()):
        path.rename(root / path.name)
    unpacked.rmdir()


def parse_ids(name: str, entries: Iterable[str | int], available: Iterable[int]) -> list[int]:
    """Return the tiles with these numbers and ranges, in ascending order.

    Args:
        name: of the setting, for messages.
        entries: numbers, and ranges such as "321-456" that include both ends; numbers within a range may be missing.
        available: the numbers of the tiles.

    Raises:
        ConfigError: for an entry that is neither, or has no tile.

    >>> parse_ids("ids", ["3-6", 9], [2, 3, 5, 9])
    [3, 5, 9]
    """
    numbers = sorted(available)
    chosen: set[int] = set()
    for entry in entries:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(entry))
        if match is None:
            msg = f"data.{name}: {entry!r} is neither a number nor a range such as 321-456."
            raise ConfigError(msg)
        low, high = int(match[1]), int(match[2] or match[1])
        found = [n for n in numbers if low <= n <= high]
        if not found:
            span = f"{len(numbers)} numbers from {numbers[0]} to {numbers[-1]}" if numbers else "none"
            msg = f"data.{name}: there is no tile {entry} with labels in this subset, which has {span}."
            raise ConfigError(msg)
        chosen.update(found)
    return sorted(chosen)


def id_blocks(numbers: Iterable[int]) -> dict[int, str]:
    """Return the block of each tile: a run of numbers with gaps below `BLOCK_GAP`, named after its ends.

    >>> id_blocks([668, 321, 340])
    {321: '321-340', 340: '321-340', 668: '668-668'}
    """
    ordered = np.array(sorted(numbers), np.int64)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) >= BLOCK_GAP) + 1)
    return {number: f"{run[0]}-{run[-1]}" for run in runs for number in run.tolist()}


def _what_is_known(home: Path, numbers: Iterable[int]) -> tuple[float, dict[int, str], list[str]]:
    """Return the side of a tile in um, the group of each, and the names of the true types, none for real tissue."""
    note = home / "truth" / "simulation.json"
    if not note.is_file():
        return SIDE_UM, id_blocks(numbers), []
    from ihc2he.simulate.endonuke import CASES, MPP
    from ihc2he.simulate.tissue import TYPES

    try:
        size = int(json.loads(note.read_text(encoding="utf-8"))["size"])
    except (OSError, ValueError, KeyError, TypeError):
        size = 0
    if size < 1:
        msg = f"{note}: no size of the tiles can be read. Delete {home} and simulate it again."
        raise DataError(msg)
    return MPP * size, {number: f"case {number % CASES}" for number in numbers}, list(TYPES)


def _by_tile(labels: Iterable[Label], chosen: set[Label], first: set[Label]) -> dict[int, list[Label]]:
    """Return the labels of each tile, the reference first."""

    def rank(label: Label) -> tuple[bool, bool, bool, str, str]:
        student = not label.annotator.startswith("ptg")
        return label not in chosen, label not in first, student, label.annotator, label.split

    tiles: dict[int, list[Label]] = {}
    for label in sorted(labels, key=rank):
        tiles.setdefault(label.number, []).append(label)
    return tiles


def _pixel_size(image: Path, size: tuple[int, int], side_um: float) -> float:
    """Return um/px of a tile that shows a square of known side."""
    if not any(all(abs(side_um / side / native - 1) <= 0.02 for side in size) for native in PUBLISHED_MPP):
        expected = " or ".join(f"{side_um / native:g}x{side_um / native:g}" for native in PUBLISHED_MPP)
        msg = (
            f"{image}: {size[1]}x{size[0]} px, expected {expected}: {side_um:g} um at 0.5 or 0.25 um/px. "
            "If the tiles were resized or cut, pass their pixel size as data.mpp."
        )
        raise DataError(msg)
    return side_um / size[1]


def _log_counts(subset: str, tiles: Sequence[PointTile]) -> None:
    counts = np.bincount(np.concatenate([tile.points_n3[:, 2] for tile in tiles]), minlength=len(CLASSES))
    classes = ", ".join(f"{n} {name}" for n, name in zip(counts, CLASSES, strict=True))
    n_groups = len({tile.group for tile in tiles})
    log.info("EndoNuke, %s: %d tiles of %d groups, %d points (%s)", subset, len(tiles), n_groups, counts.sum(), classes)
