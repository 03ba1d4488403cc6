"""Your own tiles with one class each: a folder for each class, or a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ihc2he.data.labelled import LabelledDataModule
from ihc2he.data.splits import SPLITS
from ihc2he.data.store import Record, TileStore
from ihc2he.data.tables import by_name, pixel_size, read_table
from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.tiling.resampling import resample

COLUMNS = ("class", "split", "case", "um_per_px")

HOW_TO_GET = """\
No tiles were found below {root}, nor is there a tile store of them at {store}.
Expected one of these (PNG, JPEG or TIFF):
  {root}/CLASS/*.png: a folder for each class
  {root}/SPLIT/CLASS/*.png: with the splits train, test and perhaps val above
  {root}/**/*.png and {root}/tiles.csv: columns name, class, and perhaps split, case, um_per_px
If they lie elsewhere, pass data.root=FOLDER."""


class Tile(NamedTuple):
    """A tile before it is read.

    Attributes:
        name: relative to the root, without extension.
        path: of the file.
        kind: its class.
        split: "train", "val", "test", or "" if it is not known.
        case: or "".
        mpp: um/px of the file.
    """

    name: str
    path: Path
    kind: str
    split: str
    case: str
    mpp: float


@dataclass(kw_only=True, eq=False)
class LabelledTilesDataModule(LabelledDataModule):
    """Tiles of any source with one class each; `LabelledDataModule` documents the batches.

    Args:
        root: with a folder for each class, perhaps below folders of splits, or with ``tiles.csv``.
        classes: their names, in the order that is meant where they are grades; None: in alphabetical order.
        mpp: um/px of the files that ``tiles.csv`` has no value for; None: as the file states.
        target_mpp: um/px of the tiles before they are reduced to `size`.
    """

    root: str
    classes: Sequence[str] | Sequence[str | int] | None = None
    mpp: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = None if self.classes is None else [str(name) for name in self.classes]
        check_class_names(self.names or (), "data.classes")
        self.folder = Path(self.root).expanduser()
        self.table = self.folder / "tiles.csv"

    @property
    def fields(self) -> Sequence[str]:
        return ("image",)

    def classes_of(self, store: TileStore) -> list[str]:
        return self.names or sorted({row["group"] for row in store.rows})

    def cases_of(self, store: TileStore) -> list[str]:
        return [row["case"] for row in store.rows]

    def how_to_name_cases(self) -> str:
        return f"Name them in {self.table}, in the column case, and pass data.rebuild=true."

    def find_tiles(self) -> list[Tile] | None:
        named = by_name(self.folder, [self.folder / name for name in find_images(self.folder)])
        if not named:
            return None
        said = read_table(self.table, COLUMNS, named)
        tiles = [self._tile(name, path, said.get(name, {})) for name, path in named.items()]
        self.compare_once({tile.path: tile.mpp for tile in tiles})
        return tiles

    def _tile(self, name: str, path: Path, said: dict[str, str]) -> Tile:
        *folders, kind = Path(name).parent.parts or ("",)
        kind = said.get("class") or kind
        if not kind:
            msg = f"{path}: its class is not known. Put it into a folder of its class, or name it in {self.table}."
            raise DataError(msg)
        if self.names and kind not in self.names:
            msg = f"{path}: class {kind!r}, but data.classes={self.names}. Correct one of both."
            raise ConfigError(msg)
        split = said.get("split") or (folders[0] if folders and folders[0] in SPLITS else "")
        if split not in (*SPLITS, ""):
            msg = f"{self.table}: {name}: split {split!r}, expected {', '.join(SPLITS)} or nothing."
            raise DataError(msg)
        mpp = pixel_size(said.get("um_per_px"), self.mpp, path, self.table)
        return Tile(name, path, kind, split, said.get("case") or "", mpp)

    def sources(self, tiles: Sequence[Tile]) -> dict[str, Path]:
        named = {tile.name: tile.path for tile in tiles}
        return named | ({"tiles.csv": self.table} if self.table.is_file() else {})

    def read_record(self, tile: Tile) -> Record:
        image = resample(read_image(tile.path), tile.mpp, self.target_mpp)
        return Record({"image": image}, {"name": tile.name, "split": tile.split, "group": tile.kind, "case": tile.case})

    def how_to_get(self) -> str:
        return HOW_TO_GET.format(root=self.folder, store=self.store_path)

    def settings(self) -> dict[str, Any]:
        return {"target_mpp": self.target_mpp, "mpp": self.mpp}
