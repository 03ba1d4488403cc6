"""Two folders of images of any size, one of IHC and one of H&E, which need not correspond."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ihc2he.data.splits import SPLITS, STAINS
from ihc2he.data.stored import require
from ihc2he.data.translation import RawTile, TranslationDataModule
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import SUFFIXES, endings, find_images, walk
from ihc2he.tiling.resampling import PIXEL_SIZE, is_pixel_size, resample


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

    def __init__(
        self,
        *,
        store: str,
        root: str | None = None,
        ihc: str | None = None,
        he: str | None = None,
        stain_a: str = "ihc",
        mpp_ihc: float | None = None,
        mpp_he: float | None = None,
        target_mpp: float | None = None,
        mpp: float | None = None,
        crop_size: int = 256,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        fraction: float = 1.0,
        samples_per_epoch: int | None = None,
        flip: bool = True,
        rotate90: bool = True,
        brightness_contrast: float = 0.0,
        on_bad_file: str = "error",
        rebuild: bool = False,
    ) -> None:
        if (root is None) == (ihc is None and he is None) or (ihc is None) != (he is None):
            msg = (
                f"data.root={root}, data.ihc={ihc}, data.he={he}: pass data.root=FOLDER with trainA and trainB in it, "
                "or both data.ihc=FOLDER and data.he=FOLDER."
            )
            raise ConfigError(msg)
        if mpp_ihc is None or mpp_he is None or not (is_pixel_size(mpp_ihc) and is_pixel_size(mpp_he)):
            msg = (
                f"data.mpp_ihc={mpp_ihc}, data.mpp_he={mpp_he}: pass the pixel size of both stains in um/px; "
                "about 0.25 for a 40x scan, 0.5 for 20x. The scanner's metadata has the exact figure."
            )
            raise ConfigError(msg)
        if stain_a not in STAINS:
            msg = f"data.stain_a={stain_a}: expected ihc or he."
            raise ConfigError(msg)
        if ihc is not None and he is not None and (inside(ihc, he) or inside(he, ihc)):
            msg = f"data.ihc={ihc}, data.he={he}: one lies inside the other, so its images would count as both stains."
            raise ConfigError(msg)
        advice = f"data.mpp_ihc and data.mpp_he for the files; for images of {mpp} um/px pass data.target_mpp={mpp}"
        require("mpp", mpp, mpp is None, advice)
        require("target_mpp", target_mpp, target_mpp is None or is_pixel_size(target_mpp), PIXEL_SIZE)
        super().__init__(
            store=store,
            target_mpp=max(mpp_ihc, mpp_he) if target_mpp is None else target_mpp,
            crop_size=crop_size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            fraction=fraction,
            samples_per_epoch=samples_per_epoch,
            sampler="uniform",
            paired=False,
            flip=flip,
            rotate90=rotate90,
            brightness_contrast=brightness_contrast,
            on_bad_file=on_bad_file,
            rebuild=rebuild,
        )
        self.source_mpp = {"ihc": mpp_ihc, "he": mpp_he}
        self.folders: dict[str, dict[str, Path]]
        if root is None:
            self.folders = {"train": {"ihc": Path(str(ihc)).expanduser(), "he": Path(str(he)).expanduser()}}
        else:
            letters = {"ihc": "A", "he": "B"} if stain_a == "ihc" else {"ihc": "B", "he": "A"}
            self.folders = {
                split: {s: Path(root).expanduser() / f"{split}{letters[s]}" for s in STAINS} for split in SPLITS
            }

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
        return {stain: resample(read_image(path), self.source_mpp[stain], self.target_mpp)}

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
