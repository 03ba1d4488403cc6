"""BCI: registered H&E and IHC (HER2) tiles of breast cancer, Liu et al., CVPR Workshops 2022.

4,873 pairs of 1024 x 1024 px at 0.46 um/px from serial sections, so structures are aligned and single cells are not;
3,896 for training, 977 for testing. The HER2 level in a file's name is that of its whole slide. Names do not
contain the slide, so a validation split of the training tiles may share slides with it; only the test split is clean.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ihc2he.data.splits import SPLITS
from ihc2he.data.store import TileStore
from ihc2he.data.stored import require_native
from ihc2he.data.translation import RawTile, TranslationDataModule, Truth
from ihc2he.errors import DataError
from ihc2he.files import exclusive
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.images.labels import read_labels
from ihc2he.tiling.resampling import resample, resized_labels

log = logging.getLogger(__name__)

NATIVE_MPP = 0.46
FOLDERS = {"ihc": "IHC", "he": "HE"}
NAME = re.compile(r"(?P<number>\d+)_(?P<split>train|val|test)_(?P<level>0|1\+|2\+|3\+)\.png", re.IGNORECASE)
# Pairs of the dataset (train includes val), and of its test tiles by level as counted in the public list of them.
PUBLISHED = {"train": 3896, "test": 977, "test 0": 38, "test 1+": 235, "test 2+": 446, "test 3+": 258}

HOW_TO_GET = """\
BCI was not found under {root} ({found}), and there is no tile store of it at {store}.
Get it from one of
  https://bci.grand-challenge.org
  https://bupt-ai-cz.github.io/BCI
  Google Drive folder 1jApbId20lX8AY0tIsoX2_2BHBLPoxD4L
Licence: non-commercial use only, cite the paper, no sale of the data or of what is derived from it.
Expected one of these trees (names such as 00000_train_1+.png; a val folder is optional):
  {root}/HE/{{train,test}}/*.png and {root}/IHC/{{train,test}}/*.png
  {root}/{{train,val,test}}/HE/*.png and {root}/{{train,val,test}}/IHC/*.png
  {root}/{{train,test}}/*.png, each with the H&E tile on the left and the IHC tile on the right
If it lies elsewhere, pass data.root=/path/to/BCI_dataset.
To try the program without it, pass data=bci_sim: simulated tissue in the same layout."""


class TileName(NamedTuple):
    """The parts of the file name of a BCI tile."""

    number: int
    split: str
    level: str


def parse_name(name: str) -> TileName | None:
    """Return the parts of a file name, or None if it is not a name of BCI.

    >>> parse_name("00012_train_3+.png")
    TileName(number=12, split='train', level='3+')
    >>> parse_name("00012.png") is None
    True
    """
    match = NAME.fullmatch(name)
    return match and TileName(int(match["number"]), match["split"].lower(), match["level"])


def find_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Return the folders of a BCI tree by split and role; empty if there are none.

    The roles are "ihc" and "he", or "pair" for the side-by-side layout of PyramidPix2pix.
    """
    stain_first = {split: {role: root / name / split for role, name in FOLDERS.items()} for split in SPLITS}
    split_first = {split: {role: root / split / name for role, name in FOLDERS.items()} for split in SPLITS}
    for layout in (stain_first, split_first):
        found = {split: roles for split, roles in layout.items() if any(path.is_dir() for path in roles.values())}
        if found:
            return found
    return {split: {"pair": root / split} for split in SPLITS if find_images(root / split)}


def pair_tiles(split: str, folders: dict[str, Path]) -> list[RawTile]:
    """Return the tiles of one split; the partners have equal names.

    Args:
        split: the split that the folders stand for.
        folders: by role, as `find_folders` gives them.

    Raises:
        DataError: for a name that is not one of BCI, and for a tile without a partner.
    """
    names = {role: find_images(folder) for role, folder in folders.items()}
    for role, folder in folders.items():
        for other, other_folder in folders.items():
            lonely = sorted(set(names[role]) - set(names[other]))
            if lonely:
                msg = (
                    f"{folder / lonely[0]}: its partner {other_folder / lonely[0]} is missing "
                    f"({len(lonely)} tiles in {folder} have none). Complete the download, or remove the tile."
                )
                raise DataError(msg)
    tiles = []
    for name in next(iter(names.values())):
        files = {role: folder / name for role, folder in folders.items()}
        path, parsed = next(iter(files.values())), parse_name(Path(name).name)
        if parsed is None:
            msg = f"{path}: expected a name like 00012_{split}_3+.png, with level 0, 1+, 2+ or 3+. Rename or remove it."
            raise DataError(msg)
        if parsed.split != split and (parsed.split, split) != ("train", "val"):  # val tiles are taken from train
            msg = f"{path}: by its name a tile of {parsed.split}, but it is in the {split} folder. Move or rename it."
            raise DataError(msg)
        tiles.append(RawTile(name, split, parsed.level, files))
    return tiles


@dataclass(kw_only=True, eq=False)
class BCIDataModule(TranslationDataModule):
    """BCI in any of its three layouts; `TranslationDataModule` documents the batches and the other arguments.

    Args:
        root: folder of the dataset; its layout is recognised.
        simulate: arguments of `ihc2he.simulate.bci.write_bci` (tiles, size, seed), to fill ``root`` with simulated
            tissue instead.
        mpp: um/px of the files: 0.46.
        target_mpp: um/px of the images it yields; other than 0.46 resamples the tiles.
    """

    root: str
    mpp: float = NATIVE_MPP
    target_mpp: float = NATIVE_MPP
    simulate: dict[str, Any] | None = None
    test_fraction: float = field(default=0.0, init=False)  # there is always a test folder
    on_bad_file: str = field(default="error", init=False)

    def __post_init__(self) -> None:
        require_native(self.mpp, NATIVE_MPP)
        super().__post_init__()
        self.folder = Path(self.root).expanduser()

    def prepare_data(self) -> None:
        if self.simulate is not None:
            from ihc2he.simulate.bci import write_bci

            with exclusive(self.folder.with_name(f"{self.folder.name}.lock")):
                write_bci(self.folder, **self.simulate)
        super().prepare_data()
        if self.simulate is None:
            warn_of_counts(TileStore(self.store_path).rows)

    @property
    def truth(self) -> Truth | None:
        return None if self.simulate is None else partial(_true_nuclei, self.folder / "truth" / "instances" / "IHC")

    def find_tiles(self) -> list[RawTile] | None:
        tiles = [tile for split, folders in find_folders(self.folder).items() for tile in pair_tiles(split, folders)]
        return tiles or None

    def read_tile(self, tile: RawTile) -> dict[str, NDArray]:
        images = {role: read_image(path) for role, path in tile.files.items()}
        if "pair" in images:
            images = _halves(images["pair"], tile.files["pair"])
        if images["ihc"].shape != images["he"].shape:
            (ihc_path, ihc_size), (he_path, he_size) = (
                (tile.files[stain], "x".join(map(str, images[stain].shape[1::-1]))) for stain in ("ihc", "he")
            )
            msg = f"{ihc_path}: {ihc_size} px, but its partner {he_path} has {he_size}. Download both again."
            raise DataError(msg)
        return {stain: resample(image, NATIVE_MPP, self.target_mpp) for stain, image in images.items()}

    def how_to_get(self) -> str:
        found = (
            ", ".join(sorted(path.name for path in self.folder.iterdir())[:8]) if self.folder.is_dir() else "no folder"
        )
        return HOW_TO_GET.format(root=self.folder, found=f"found: {found or 'nothing'}", store=self.store_path)

    def settings(self) -> dict[str, Any]:
        return {"target_mpp": self.target_mpp}


def _true_nuclei(folder: Path, row: Mapping[str, Any]) -> NDArray[np.int32]:
    height, width = row["shapes"]["ihc"][:2]
    return resized_labels(read_labels(folder / row["split"] / row["name"]), height, width)  # type: ignore[return-value]


def warn_of_counts(rows: list[dict[str, Any]]) -> None:
    """Log a warning if the number of tiles is not as published; a subset is allowed."""
    test = Counter(row["group"] for row in rows if row["split"] == "test")
    found = {"train": len(rows) - test.total(), "test": test.total()}
    found |= {f"test {level}": test[level] for level in ("0", "1+", "2+", "3+")}
    different = [f"{name} {found[name]} (published {n})" for name, n in PUBLISHED.items() if found[name] != n]
    if different:
        log.warning("This is not all of BCI as published: %s pairs.", ", ".join(different))


def _halves(pair: NDArray, path: Path) -> dict[str, NDArray]:
    """Return the two tiles of a side-by-side image: H&E is its left half, IHC its right."""
    height, width = pair.shape[:2]
    if width != 2 * height:
        msg = (
            f"{path}: {width}x{height} px; expected twice as wide as high, H&E left and IHC right. "
            "Separate tiles belong in folders HE and IHC."
        )
        raise DataError(msg)
    return {"ihc": pair[:, height:], "he": pair[:, :height]}
