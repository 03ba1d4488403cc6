"""The numbers of synthetic tiles that are still to be made."""

from pathlib import Path
from typing import Any

from ihc2he.data.evaluation import TileLoader, WholeTilesDataModule
from ihc2he.data.stored import require
from ihc2he.datainfo import DataInfo


class LatentsDataModule(WholeTilesDataModule):
    """Numbers from 0, of which a model makes tiles; a batch is ``{"number": list of int}``.

    Args:
        count: of tiles, over all levels.
        out: folder of the tiles: numbers of PNG files in its sub-folders are skipped. None: none is.
        batch_size: tiles per batch and process.
    """

    def __init__(self, *, count: int = 400, out: str | None = None, batch_size: int = 16) -> None:
        super().__init__(batch_size=batch_size, num_workers=0)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer tiles left than devices
        require("count", count, 1 <= count <= 10**6, "1 to 1000000 tiles")
        self.count = count
        self.out = None if out is None else Path(out).expanduser()

    @property
    def info(self) -> DataInfo:
        """Nothing is known of the tiles before they are made."""
        return DataInfo(mpp=None)

    def setup(self, stage: str | None = None) -> None:
        """Find the tiles that are still to be made."""
        names = {path.stem for path in self.out.glob("*/*.png")} if self.out is not None else set()
        done = {int(name) for name in names if name.isdecimal()}
        self.numbers = [number for number in range(self.count) if number not in done]

    def predict_dataloader(self) -> TileLoader:
        return self._loader(self.numbers, _numbered)


def _numbered(number: int) -> dict[str, Any]:
    return {"number": number}
