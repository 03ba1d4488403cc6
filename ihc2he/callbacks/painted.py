"""A picture of what painting makes of training crops, beside the real tiles that it should look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from ihc2he.callbacks.panels import panel
from ihc2he.data.painting import Painter
from ihc2he.data.transforms import to_tensor
from ihc2he.images.writing import write_png
from ihc2he.stain.measuring import measure, most_similar
from ihc2he.tiling.resampling import resample


class PaintedPicture(Callback):
    """Writes `painted.png` at the start of a training that paints H&E as IHC; of other trainings nothing.

    Each row has a training crop, several paintings of it, and the tiles of the reference whose stains are most similar
    to the first of them.

    Args:
        dirpath: of the picture.
        n_rows: number of crops.
        n_painted: paintings of each.
        n_real: tiles of the reference beside them.
        side: px of a crop in the picture.
    """

    def __init__(self, dirpath: str, n_rows: int = 6, n_painted: int = 3, n_real: int = 2, side: int = 256) -> None:
        self.dirpath = Path(dirpath)
        self.n_rows, self.n_painted, self.n_real = n_rows, n_painted, n_real
        self.side = side

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        painter = getattr(data, "painter", None)
        if painter is None or not trainer.is_global_zero:
            return
        crops = data.train_crops(augmented=False)
        chosen = np.linspace(0, len(crops) - 1, min(self.n_rows, len(crops))).round().astype(int).tolist()
        rows = [self._row(painter, crops[i], i) for i in chosen]
        write_png(self.dirpath / "painted.png", np.concatenate(rows))

    def _row(self, painter: Painter, crop: dict[str, Any], number: int) -> NDArray[np.uint8]:
        image = (crop["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        types = crop["type"].numpy().astype(np.int32) if "type" in crop else None
        painted = [
            painter.paint(image, crop["inst"].numpy(), types, np.random.default_rng((number, k)))
            for k in range(self.n_painted)
        ]
        cells = [("H&E", image), *(("painted", one) for one in painted)]
        if painter.reference is not None:
            cells += [("real", tile) for tile in self._nearest(painter, painter.reference, painted[0])]
        return panel([(title, to_tensor(cell / np.float32(127.5) - 1)) for title, cell in cells], self.side, len(cells))

    def _nearest(self, painter: Painter, folder: Path, painted: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Return tiles of the reference as pictures of the size and the pixel size of a crop; what is missing is white.

        Args:
            painter: with the tiles.
            folder: of the reference.
            painted: the crop to which they are similar; an empty one gets any tiles.
        """
        stains, every = measure(painted, painter.mpp), [tile.stains for tile in painter.tiles]
        order = list(range(len(every))) if stains is None else most_similar(stains, every, len(every))
        height, width = painted.shape[:2]
        pictures = [np.full_like(painted, 255) for _ in range(self.n_real)]
        for picture, i in zip(pictures, order, strict=False):
            tile = painter.tiles[i]
            image = resample(tile.read(folder), tile.mpp, painter.mpp)[:height, :width]
            picture[: image.shape[0], : image.shape[1]] = image
        return pictures
