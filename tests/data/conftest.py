"""Miniature datasets in the public layouts."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ihc2he.data import translation
from ihc2he.data.bci import BCIDataModule
from ihc2he.data.unpaired import UnpairedDataModule

LEVELS = ["0"] * 2 + ["1+"] * 4 + ["2+"] * 8 + ["3+"] * 6


def tile(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """A tile that can be told from every other, smooth enough to survive JPEG."""
    coarse = np.random.default_rng(seed).integers(60, 255, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image[..., [2, 1, 0, *range(3, image.shape[-1])]] if image.ndim == 3 else image
    assert cv2.imwrite(str(path), bgr)


@pytest.fixture
def write_image() -> Callable[[Path, NDArray], None]:
    return write


@pytest.fixture
def make_tile() -> Callable[..., NDArray[np.uint8]]:
    return tile


@pytest.fixture
def make_bci(tmp_path: Path) -> Callable[..., Path]:
    """Write a BCI tree of 20 training and 5 test pairs; tile k has seed k (IHC) and 1000 + k (H&E)."""

    def make(layout: str = "stain_first", val: bool = False, root: Path = tmp_path / "BCI_dataset") -> Path:
        names = [("train", f"{k:05d}_train_{level}.png") for k, level in enumerate(LEVELS)]
        names += [("test", f"{k:05d}_test_{level}.png") for k, level in enumerate(["0", "1+", "2+", "2+", "3+"])]
        if val:
            names[3:6] = [("val", name) for _, name in names[3:6]]
        for k, (split, name) in enumerate(names):
            ihc, he = tile(k), tile(1000 + k)
            if layout == "stain_first":
                write(root / "IHC" / split / name, ihc)
                write(root / "HE" / split / name, he)
            elif layout == "split_first":
                write(root / split / "IHC" / name, ihc)
                write(root / split / "HE" / name, he)
            else:
                write(root / split / name, np.hstack([he, ihc]))
        return root

    return make


@pytest.fixture
def bci(make_bci: Callable[..., Path], tmp_path: Path) -> Callable[..., BCIDataModule]:
    """A prepared BCI DataModule; keyword arguments override."""

    def make(**arguments: object) -> BCIDataModule:
        root = tmp_path / "BCI_dataset"
        if not root.exists():
            make_bci()
        defaults = {"root": str(root), "store": str(tmp_path / "store"), "crop_size": 32, "num_workers": 0}
        data = BCIDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup()
        return data

    return make


@pytest.fixture
def unpaired(tmp_path: Path) -> Callable[..., UnpairedDataModule]:
    """An unprepared DataModule over <tmp_path>/ihc (12 tiles) and <tmp_path>/he (8 tiles, twice as fine)."""
    for k in range(12):
        write(tmp_path / "ihc" / f"{k:02d}.png", tile(k, 64))
    for k in range(8):
        write(tmp_path / "he" / f"{k:02d}.png", tile(1000 + k, 128))

    def make(**arguments: object) -> UnpairedDataModule:
        defaults: dict = {
            "ihc": str(tmp_path / "ihc"),
            "he": str(tmp_path / "he"),
            "mpp_ihc": 0.5,
            "mpp_he": 0.25,
            "store": str(tmp_path / "store"),
            "crop_size": 32,
            "num_workers": 0,
        }
        return UnpairedDataModule(**(defaults | arguments))

    return make


@pytest.fixture(autouse=True)
def _without_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the exploration picture to the tests named after it: drawing takes most of a second."""
    if "exploration" not in request.node.name:
        monkeypatch.delitem(translation.REPORTS, "exploration.png")


@pytest.fixture
def realdata() -> Path:
    folder = os.environ.get("IHC2HE_REALDATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the real tiles; set IHC2HE_REALDATA to their folder")
    return Path(folder)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make what lies below a folder refuse to be written, as a disk that can only be read does (also for root)."""

    def make(folder: Path) -> None:
        def refuse(name: Any) -> None:
            if not isinstance(name, int) and Path(os.fsdecode(name)).absolute().is_relative_to(folder):
                raise OSError(errno.EROFS, "Read-only file system", os.fspath(name))

        real_open, real_os_open, real_file = io.open, os.open, h5py.File

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                refuse(file)
            return real_open(file, mode, *args, **kwargs)

        def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                refuse(path)
            return real_os_open(path, flags, *args, **kwargs)

        def file(name: Any, mode: str = "r", **kwargs: Any) -> h5py.File:
            if mode != "r":
                refuse(name)
            return real_file(name, mode, **kwargs)

        monkeypatch.setattr(io, "open", open_)
        monkeypatch.setattr("builtins.open", open_)
        monkeypatch.setattr(os, "open", os_open)
        monkeypatch.setattr(h5py, "File", file)
        for name in ("unlink", "replace", "rename"):
            monkeypatch.setattr(os, name, lambda path, *args, **kwargs: refuse(path))

    return make
