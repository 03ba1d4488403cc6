"""Tiles that can be told from one another, and files of them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture
def make_tile() -> Callable[..., NDArray[np.uint8]]:
    """Return `make_tile(seed, size)`, a tile smooth enough to survive JPEG."""

    def make(seed: int, size: int = 64) -> NDArray[np.uint8]:
        coarse = np.random.default_rng(seed).integers(60, 255, (4, 4, 3), np.uint8)
        return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)

    return make


@pytest.fixture
def write_image() -> Callable[[Path, NDArray], None]:
    """Return `write_image(path, image)` for grey, RGB and RGBA, by OpenCV."""

    def write(path: Path, image: NDArray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = image[..., [2, 1, 0, *range(3, image.shape[-1])]] if image.ndim == 3 else image
        assert cv2.imwrite(str(path), bgr)

    return write
