"""BCI for classifiers: tiles of one stain or both with the HER2 level of their slide."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ihc2he.data.bci import NATIVE_MPP, BCIDataModule
from ihc2he.data.labelled import LabelledDataModule
from ihc2he.data.store import Record, Skipped, TileStore
from ihc2he.data.stored import require
from ihc2he.data.tables import read_rows
from ihc2he.data.translation import RawTile
from ihc2he.errors import DataError

LEVELS = ["0", "1+", "2+", "3+"]
STAINS = {"ihc": ("ihc",), "he": ("he",), "both": ("ihc", "he")}


@dataclass(kw_only=True, eq=False)
class HER2DataModule(LabelledDataModule):
    """BCI with its levels, from the store of `BCIDataModule`; `LabelledDataModule` documents the batches.

    The level is that of a whole slide, and the slides of the published split are not named: tiles of one slide may be
    on both sides of it. The other splits keep the tiles of a case together.

    Args:
        root: folder of the dataset, as for `BCIDataModule`.
        stain: "ihc", "he", or "both": six channels, IHC first.
        cases: CSV file with the columns name (of the tile's file) and case; None: ``cases.csv`` in `root`, if it is
            there, as that of simulated tissue is.
        simulate: arguments of `ihc2he.simulate.bci.write_bci`, to fill `root` with simulated tissue.
        target_mpp: um/px of the images in the store.
    """

    root: str
    stain: str = "ihc"
    cases: str | None = None
    simulate: dict[str, Any] | None = None
    target_mpp: float = NATIVE_MPP

    one_class_a_case = True

    def __post_init__(self) -> None:
        require("stain", self.stain, self.stain in STAINS, " or ".join(STAINS))
        super().__post_init__()
        self.bci = BCIDataModule(
            root=self.root, store=self.store, target_mpp=self.target_mpp, simulate=self.simulate, rebuild=self.rebuild
        )

    @property
    def fields(self) -> Sequence[str]:
        return STAINS[self.stain]

    def classes_of(self, store: TileStore) -> list[str]:
        return LEVELS

    def cases_of(self, store: TileStore) -> list[str]:
        path = Path(self.cases).expanduser() if self.cases else self.bci.folder / "cases.csv"
        if not self.cases and not path.is_file():
            return [""] * len(store.rows)
        if not path.is_file():
            msg = f"data.cases={self.cases}: there is no such file. Pass a CSV file with the columns name and case."
            raise DataError(msg)
        case_of = {
            Path(row["name"]).name: row["case"] for _, row in read_rows(path, ["name", "case"], ["name", "case"])
        }
        return [case_of.get(Path(row["name"]).name, "") for row in store.rows]

    def how_to_name_cases(self) -> str:
        return f"Name them in {self.cases or self.bci.folder / 'cases.csv'}, with the columns name and case."

    def prepare_data(self) -> None:
        """Make the simulated tissue if asked, and the store."""
        self.bci.prepare_data()
        self.look_at_store()

    def find_tiles(self) -> list[RawTile] | None:
        return self.bci.find_tiles()

    def sources(self, tiles: Sequence[RawTile]) -> dict[str, Path]:
        return self.bci.sources(tiles)

    def read_record(self, tile: RawTile) -> Record | Skipped:
        return self.bci.read_record(tile)

    def how_to_get(self) -> str:
        return self.bci.how_to_get()

    def settings(self) -> dict[str, Any]:
        return self.bci.settings()
