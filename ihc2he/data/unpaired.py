"""Two folders of images of any size, one of IHC and one of H&E, which need not correspond."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ihc2he.data.splits import SPLITS, STAINS
from ihc2he.data.stored import require
from ihc2he.data.translation import RawTile, TranslationDataModule
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import SUFFIXES, endings, find_images, walk
from ihc2he.tiling.resampling import is_pixel_size, resample


@dataclass(kw_only=True, eq=False)
class UnpairedDataModule(TranslationDataModule):
    """IHC and H&E images from anywhere; `TranslationDataModule` documents the batches and the other arguments.

    Pass either ``root`` or both ``ihc`` and ``he``. Folders are searched with their sub-folders. Without
    folders for them, validation and test images are fractions of each stain's training images; images of one slide
    may then be on both sides. An evaluation batch pairs the i-th IHC with the i-th H&E image, unrelated.

    Args:
        root: folder with ``trainA`` and ``trainB``, and perhaps ``valA``, ``valB``, ``testA``, ``testB``.
        ihc: folder of IHC images.
        he: folder of H&E images.
        stain_a: the stain of the A folders of ``root``, "ihc" or "he" (MIST has H&E in A).
        mpp_ihc: um/px of the IHC files.
        mpp_he: um/px of the H&E files.
        target_mpp: um/px of the images it yields; None: the coarser of the two, so that no detail is invented.
        mpp: its former name; refused, because elsewhere it is the pixel size of the files.

    Raises:
        ConfigError: if a folder or a pixel size is not given.
    """

    root: str | None = None
    ihc: str | None = None
    he: str | None = None
    stain_a: str = "ihc"
    mpp_ihc: float | None = None
    mpp_he: float | None = None
    target_mpp: float | None = None  # type: ignore[assignment]  # a number after __post_init__
    mpp: float | None = None
    sampler: str = field(default="uniform", init=False)
    paired: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.folders = self._folders()
        mpp_ihc, mpp_he, mpp = self.mpp_ihc, self.mpp_he, self.mpp
        if mpp_ihc is None or mpp_he is None or not (is_pixel_size(mpp_ihc) and is_pixel_size(mpp_he)):
            msg = (
                f"data.mpp_ihc={mpp_ihc}, data.mpp_he={mpp_he}: pass the pixel size of both stains in um/px; "
                "about 0.25 for a 40x scan, 0.5 for 20x. The scanner's metadata has the exact figure."
            )
            raise ConfigError(msg)
        advice = f"data.mpp_ihc and data.mpp_he for the files; for images of {mpp} um/px pass data.target_mpp={mpp}"
        require("mpp", mpp, mpp is None, advice)
        self.source_mpp = {"ihc": mpp_ihc, "he": mpp_he}
        if self.target_mpp is None:
            self.target_mpp = max(mpp_ihc, mpp_he)
        super().__post_init__()

    def _folders(self) -> dict[str, dict[str, Path]]:
        """Return the folders of each split by stain, which may be missing."""
        root, ihc, he = self.root, self.ihc, self.he
        if (root is None) == (ihc is None and he is None) or (ihc is None) != (he is None):
            msg = (
                f"data.root={root}, data.ihc={ihc}, data.he={he}: pass data.root=FOLDER with trainA and trainB in it, "
                "or both data.ihc=FOLDER and data.he=FOLDER."
            )
            raise ConfigError(msg)
        require("stain_a", self.stain_a, self.stain_a in STAINS, " or ".join(STAINS))
        if ihc is not None and he is not None:
            if inside(ihc, he) or inside(he, ihc):
                msg = (
                    f"data.ihc={ihc}, data.he={he}: one lies inside the other, so its images would count as both "
                    "stains."
                )
                raise ConfigError(msg)
            return {"train": {"ihc": Path(ihc).expanduser(), "he": Path(he).expanduser()}}
        letters = {"ihc": "A", "he": "B"} if self.stain_a == "ihc" else {"ihc": "B", "he": "A"}
        return {s: {stain: Path(str(root)).expanduser() / f"{s}{letters[stain]}" for stain in STAINS} for s in SPLITS}

    def find_tiles(self) -> list[RawTile] | None:
        present = {
            split: stains
            for split, stains in self.folders.items()
            if any(folder.is_dir() for folder in stains.values())
        }
        tiles = []
        for split, stains in present.items():
            for stain, folder in stains.items():
                names = find_images(folder)
                if not names:
                    found = endings(walk(folder)) or "nothing"
                    msg = f"{folder}: expected {stain} images ({', '.join(SUFFIXES)}), found {found}."
                    raise DataError(msg)
                tiles += [RawTile(name, split, "", {stain: folder / name}) for name in names]
        self.compare_once({file: self.source_mpp[stain] for tile in tiles for stain, file in tile.files.items()})
        return tiles or None

    def read_tile(self, tile: RawTile) -> dict[str, NDArray]:
        ((stain, path),) = tile.files.items()
        return {stain: resample(read_image(path), self.source_mpp[stain], self.target_mpp)}  # type: ignore[arg-type]

    def how_to_get(self) -> str:
        missing = ", ".join(str(folder) for stains in self.folders.values() for folder in stains.values())
        return (
            f"None of these folders is there: {missing}; nor is there a tile store of them at {self.store_path}. "
            "Pass data.root=FOLDER with trainA and trainB in it, or both data.ihc=FOLDER and data.he=FOLDER."
        )

    def settings(self) -> dict[str, Any]:
        sizes = {"mpp_ihc": self.source_mpp["ihc"], "mpp_he": self.source_mpp["he"]}
        return {"target_mpp": self.target_mpp} | sizes


def inside(folder: str, other: str) -> bool:
    """Return whether a folder is another one, or is inside it.

    >>> inside("data/he", "data"), inside("data/he", "data/ihc")
    (True, False)
    """
    return Path(folder).resolve().is_relative_to(Path(other).resolve())
