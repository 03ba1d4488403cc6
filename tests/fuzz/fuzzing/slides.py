"""Malformed whole slides: pyramids in TIFF, SVS, DICOM, and the annotations of QuPath beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import damage
from .damage import on
from .harness import Case, Change

KIND = "slides"
OME, SVS, DCM = FILES = ("ome/slide7.ome.tif", "svs/slide7.svs", "dcm/slide7.dcm")
REGIONS = "regions.geojson"
SCENARIOS = {OME: "slide", SVS: "slide, SVS", DCM: "slide, DICOM"}
NO_CHECKSUM = "documented: pixels of JPEG and of uncompressed files have no checksums"
_SIDES, _TILE = (512, 640), 128


def cases() -> list[Case]:
    """Return the cases."""
    found: list[Case] = []
    for file in FILES:
        pixels = {} if file == OME else {"valid": NO_CHECKSUM}
        for family, spoil, n, change in (
            ("cut off", damage.cut, 4, {}), ("cut off", damage.cut_end, 1, pixels), ("empty", damage.empty, 1, {}),
            ("other content", damage.noise, 1, {}), ("a text of that name", damage.text, 1, {}),
            ("a stretch of zeros", damage.zeros, 4, pixels), ("bits flipped", damage.flip(), 2, pixels),
            ("bits flipped in the first hundredth", damage.flip(0, 0.01), 4, pixels),
        ):  # fmt: skip
            found += on(KIND, family, SCENARIOS[file], file, spoil, ("slide7",), n, **change)
        for family, spoil in (
            ("missing", damage.gone), ("a link to nothing or to itself", damage.dangling),
            ("a link to nothing or to itself", damage.looping), ("a named pipe", damage.pipe),
        ):  # fmt: skip
            found += on(KIND, family, SCENARIOS[file], file, spoil, (f"data.path={file.partition('/')[0]}",))
    edits: Sequence[tuple[str, str, Sequence[tuple[str, Callable[..., Any]]]]] = (
        (OME, "TIFF", TAGS), (OME, "pyramid", LEVELS), (OME, "pixel size", OME_SIZES), (SVS, "TIFF", TAGS),
        (SVS, "pixel size", SVS_SIZES), (DCM, "DICOM", ELEMENTS),
    )  # fmt: skip
    for file, about, own in edits:
        found += [
            Case(KIND, f"{about}: {family}", SCENARIOS[file], _edited(file, edit), number)
            for number, (family, edit) in enumerate(own)
        ]
    found += [
        Case(KIND, f"regions: {family}", "slide, regions", _rewritten(text), number)
        for number, (family, text) in enumerate(TEXTS)
    ]
    return found


def _edited(file: str, edit: Callable[[Path], Callable[[], Sequence[str]] | None]) -> Callable[..., Change]:
    def mutate(rng: np.random.Generator) -> Change:
        return Change(names=("slide7",), twin=edit(Path(file)))

    return mutate


def _rewritten(text: str) -> Callable[..., Change]:
    def mutate(rng: np.random.Generator) -> Change:
        Path(REGIONS).write_text(text, encoding="utf-8")
        return Change(names=("regions",))

    return mutate


# ------------------------------------------------------------------ good slides


def picture() -> NDArray[np.uint8]:
    """Return tissue on glass with dark discs, 0.25 um/px."""
    rows, columns = np.mgrid[: _SIDES[0], : _SIDES[1]]
    image = np.full((*_SIDES, 3), 244, np.uint8)
    image[60:-60, 60:-60] = (215, 200, 230)
    for y in range(100, _SIDES[0] - 80, 48):
        for x in range(100, _SIDES[1] - 80, 48):
            image[(rows - y) ** 2 + (columns - x) ** 2 <= 144] = (70, 60, 130)
    return image


def write_slides(world: Path) -> None:
    """Write a slide of each format, each in a folder of its own, and a region."""
    for file, write in ((OME, pyramid), (SVS, aperio), (DCM, dicom)):
        (world / file).parent.mkdir()
        write(world / file)
    (world / REGIONS).write_text(_region([[100, 100], [500, 100], [500, 400], [100, 400], [100, 100]]))


def pyramid(path: Path, steps: Sequence[int] = (2, 4), size: str = 'PhysicalSizeX="0.25" PhysicalSizeY="0.25"',
            odd: bool = False) -> None:  # fmt: skip
    """Write an OME-TIFF with smaller levels.

    Args:
        path: of the file.
        steps: by how much they are smaller.
        size: attributes of its pixels.
        odd: whether the first of them is of another shape.
    """
    import tifffile

    image, sides = picture(), f'SizeX="{_SIDES[1]}" SizeY="{_SIDES[0]}" SizeC="3" SizeZ="1" SizeT="1"'
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" {sides} {size}>'
        '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    tiles: dict[str, Any] = {"tile": (_TILE, _TILE), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, subifds=len(steps), description=text, **tiles)
        for step in steps:
            level = image[::step, ::step]
            writer.write(
                np.ascontiguousarray(level[:-50] if odd and step == steps[0] else level), subfiletype=1, **tiles
            )


def aperio(path: Path, size: str = "MPP = 0.25") -> None:
    """Write a slide as scanners of Aperio do, with two levels."""
    import tifffile

    text = f"Aperio Image Library v10\n{_SIDES[1]}x{_SIDES[0]} ({_TILE}x{_TILE})|AppMag = 40|{size}"
    options: dict[str, Any] = {
        "tile": (_TILE, _TILE), "photometric": "rgb", "compression": "jpeg", "metadata": None, "description": text,
    }  # fmt: skip
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2):
            writer.write(np.ascontiguousarray(picture()[::step, ::step]), **options)


def dicom(path: Path) -> None:
    """Write a slide of one level in DICOM, without compression."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

    down, across = (side // _TILE for side in _SIDES)
    data, measures, shared, optical = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = [0.00025] * 2, 0.001
    shared.PixelMeasuresSequence, optical.OpticalPathIdentifier = [measures], "1"
    data.update({
        "SOPClassUID": VLWholeSlideMicroscopyImageStorage, "SOPInstanceUID": "1.2.5.1", "SeriesInstanceUID": "1.2.5",
        "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "Modality": "SM",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "DimensionOrganizationType": "TILED_FULL",
        "TotalPixelMatrixColumns": _SIDES[1], "TotalPixelMatrixRows": _SIDES[0], "TotalPixelMatrixFocalPlanes": 1,
        "NumberOfOpticalPaths": 1, "NumberOfFrames": down * across, "Rows": _TILE, "Columns": _TILE,
        "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8,
        "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "SharedFunctionalGroupsSequence": [shared],
        "OpticalPathSequence": [optical],
    })  # fmt: skip
    data.PixelData = picture().reshape(down, _TILE, across, _TILE, 3).transpose(0, 2, 1, 3, 4).tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


def _region(corners: Any, kind: str = "Polygon") -> str:
    shape = {"type": kind, "coordinates": [corners]}
    return json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": shape}]})


# ------------------------------------------------------------------ edits


def _tag(name: str, value: int, page: int = 0) -> Callable[[Path], None]:
    """Return an edit of the first value of a tag."""

    def edit(path: Path) -> None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            tag = file.pages[page].tags[name]
            at, width = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        _put(path, at, value.to_bytes(width, "little"))

    return edit


def _next_page(to: Callable[[Any], int]) -> Callable[[Path], None]:
    """Return an edit of the offset of the directory that follows the last one."""

    def edit(path: Path) -> None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            last, target = file.pages[-1], to(file)
            at = last.offset + 2 + 12 * len(last.tags)
        _put(path, at, target.to_bytes(4, "little"))

    return edit


def _first_level(to: Callable[[Any], int], twin: bool = False) -> Callable[[Path], Callable[[], Sequence[str]] | None]:
    """Return an edit of the offset of the first smaller level."""

    def edit(path: Path) -> Callable[[], Sequence[str]] | None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            at, target = page.tags["SubIFDs"].valueoffset, to(page)
        _put(path, at, target.to_bytes(4, "little"))
        return _without_level if twin else None

    return edit


def _put(path: Path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def _without_level() -> Sequence[str]:
    pyramid(Path(OME), steps=(4,))
    return ()


def _odd_level(path: Path) -> Callable[[], Sequence[str]]:
    pyramid(path, odd=True)
    return _without_level


def _sized(size: str) -> Callable[[Path], None]:
    return lambda path: (pyramid if path.suffix == ".tif" else aperio)(path, size=size)


def _element(name: str, value: Any = None) -> Callable[[Path], None]:
    """Return an edit of an element of DICOM; None deletes it."""

    def edit(path: Path) -> None:
        import pydicom

        data = pydicom.dcmread(path)
        place = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] if name == "PixelSpacing" else data
        if value is None:
            delattr(place, name)
        else:
            setattr(place, name, value)
        data.save_as(path)

    return edit


TAGS = (
    ("no size", _tag("ImageWidth", 0)), ("no size", _tag("ImageLength", 0)), ("huge", _tag("ImageWidth", 60_000)),
    ("no tiles", _tag("TileWidth", 0)), ("other tiles", _tag("TileLength", 16)),
    ("unknown compression", _tag("Compression", 9999)), ("wrong offset", _tag("TileOffsets", 3)),
    ("wrong offset", _tag("TileOffsets", 2**31)), ("wrong length", _tag("TileByteCounts", 2**31)),
    ("other samples", _tag("SamplesPerPixel", 7)), ("other colours", _tag("PhotometricInterpretation", 32803)),
    ("a loop of pages", _next_page(lambda file: file.pages[0].offset)),
    ("next page nowhere", _next_page(lambda file: 2**31)),
)  # fmt: skip
LEVELS = (
    ("a level that is the whole", _first_level(lambda page: page.offset, twin=True)),
    ("a level that is nowhere", _first_level(lambda page: 2**31, twin=True)),
    ("a level in the pixels", _first_level(lambda page: page.dataoffsets[0])),
    ("a level that does not fit", _odd_level),
)
OME_SIZES = (
    *(
        (family, _sized(f'PhysicalSizeX="{x}" PhysicalSizeY="{y}"'))
        for family, x, y in (
            ("0", 0, 0), ("negative", -0.25, -0.25), ("NaN", "nan", "nan"), ("a text", "fine", "fine"),
            ("too large", 250, 250), ("too small", 0.00025, 0.00025), ("not square", 0.25, 0.5),
        )
    ),
    ("missing", _sized("")),
    ("broken XML", _sized('PhysicalSizeX="0.25')),
)  # fmt: skip
SVS_SIZES = (
    *((family, _sized(f"MPP = {x}")) for family, x in (("0", 0), ("negative", -1), ("a text", "fine"), ("huge", 1e9))),
    ("missing", _sized("Filtered = 5")),
)
ELEMENTS = (
    ("no ImageType", _element("ImageType")), ("no pixels", _element("PixelData")), ("no size", _element("Rows", 0)),
    ("no size", _element("TotalPixelMatrixColumns", 0)), ("huge", _element("TotalPixelMatrixRows", 2**31)),
    ("frames are missing", _element("NumberOfFrames", 2)), ("no pixel size", _element("PixelSpacing")),
    ("no pixel size", _element("PixelSpacing", [0, 0])), ("no colours", _element("PhotometricInterpretation")),
    ("no series", _element("SeriesInstanceUID")), ("other samples", _element("SamplesPerPixel", 1)),
)  # fmt: skip
_LINE = [[100, 100], [500, 100], [100, 100]]
TEXTS = (
    ("empty", ""), ("broken JSON", "{"), ("a list", "[]"), ("a text", '"regions"'), ("no coordinates", _region(None)),
    ("a text of coordinates", _region("x")), ("a line", _region(_LINE)), ("NaN", _region([[float("nan")] * 2] * 4)),
    ("another kind", _region([100, 100], "Teapot")),
    ("outside of the slide", _region([[9000, 9000], [9900, 9000], [9900, 9900], [9000, 9000]])),
)  # fmt: skip
