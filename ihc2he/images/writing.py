"""Writing images and label maps; an incomplete file never gets its final name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.files import complete


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an HxWx3 uint8 RGB image."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with complete(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_instances(path: Path, inst_hw: NDArray[np.int32]) -> None:
    """Write an instance map, as 16-bit PNG or 32-bit TIFF, depending on its suffix."""
    if path.suffix == ".png":
        content = cv2.imencode(".png", inst_hw.astype(np.uint16))[1].tobytes()
        with complete(path) as temporary:
            temporary.write_bytes(content)
        return
    import tifffile

    with complete(path) as temporary:
        tifffile.imwrite(temporary, inst_hw.astype(np.uint32), compression="zlib")
