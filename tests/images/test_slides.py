"""Slides are read by region, with the levels of their pyramids, and what is wrong with them is said."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ihc2he.errors import ConfigError, DataError
from ihc2he.images.slides import open_slide
from ihc2he.images.source import FileSource

REALDATA = os.environ.get("IHC2HE_REALDATA")
RNG = np.random.default_rng(0)
IMAGE = np.kron(RNG.integers(0, 256, (75, 100, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # 300 x 400 px


def pyramid(path, sub=True, mpp=0.25, **options):
    """Write an OME-TIFF with levels in sub-directories, or a TIFF with levels that follow."""
    tiles = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"} | options
    smaller = [np.ascontiguousarray(IMAGE[::step, ::step]) for step in (2, 4)]
    size = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if mpp else {}
    with tifffile.TiffWriter(path, ome=sub) as writer:
        writer.write(IMAGE, subifds=len(smaller) if sub else None, metadata=size if sub else None, **tiles)
        for level in smaller:
            writer.write(level, subfiletype=1, metadata=None, **tiles)
    return path


@pytest.mark.parametrize("sub", [True, False])
def test_a_pyramid_is_read_by_region_and_level(tmp_path, sub):
    slide = open_slide(pyramid(tmp_path / ("a.ome.tif" if sub else "a.tif"), sub))
    assert (slide.shape, slide.levels, slide.mpp) == ((300, 400), (1.0, 2.0, 4.0), 0.25 if sub else None)
    for level, step in enumerate((1, 2, 4)):
        whole = IMAGE[::step, ::step]
        assert slide.level_shape(level) == whole.shape[:2]
        assert np.array_equal(slide.read(slice(20, 70), slice(3, 90), level), whole[20:70, 3:90])
    again = pickle.loads(pickle.dumps(slide))
    assert np.array_equal(again.whole(), IMAGE)
    assert np.array_equal(slide.thumbnail(100), IMAGE[::4, ::4]), "from the level of this size"


def test_jpeg_and_plain_images_are_slides(tmp_path, write_image):
    packed = open_slide(pyramid(tmp_path / "a.ome.tif", compression="jpeg", compressionargs={"level": 95}))
    assert np.array_equal(packed.whole(), tifffile.imread(tmp_path / "a.ome.tif"))
    write_image(tmp_path / "a.png", IMAGE)
    plain = open_slide(tmp_path / "a.png", mpp=0.5)
    assert (plain.levels, plain.mpp) == ((1.0,), 0.5)
    assert np.array_equal(plain.whole(), IMAGE)


def test_openslide_reads_what_scanners_write(tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v10\n400x300 (256x256)|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(path, IMAGE, tile=(64, 64), photometric="rgb", compression="jpeg", description=text, metadata=None)
    slide = open_slide(path)
    assert (slide.shape, slide.levels, slide.mpp) == ((300, 400), (1.0,), 0.5)
    whole = slide.whole()
    assert np.abs(whole.astype(int) - tifffile.imread(path)).max() <= 4, "two decoders of JPEG"
    again = pickle.loads(pickle.dumps(slide))
    assert np.array_equal(again.read(slice(10, 90), slice(64, 65)), whole[10:90, 64:65])


def test_a_wrong_pixel_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.mpp=-1: expected um/px"):
        open_slide(pyramid(tmp_path / "a.ome.tif"), mpp=-1)


def test_text_and_empty_folders_are_no_slides(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "a.svs").write_text("a slide")
    with pytest.raises(DataError, match=r"a\.svs: is no slide that OpenSlide knows"):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(DataError, match=r"without \.dcm files is not a slide"):
        open_slide(tmp_path)
    with pytest.raises(DataError, match=r"none\.svs: cannot be read"):
        open_slide(tmp_path / "none.svs")


def aperio(path):
    """Write a slide as scanners of Aperio do, with two levels."""
    text = "Aperio Image Library v10\n400x300 (64x64)|AppMag = 20|MPP = 0.5"
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, description=text, **options)
        writer.write(IMAGE[::3, ::3].copy(), description=text, **options)
    return path


def spoil_tile(path, page=0, tile=8):
    """Overwrite a tile with zeros."""
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[page].dataoffsets[tile], file.pages[page].databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("write", [aperio, pyramid])
def test_a_tile_that_does_not_decode_fails_alone(tmp_path, write):
    pytest.importorskip("openslide")
    path = write(tmp_path / ("a.svs" if write is aperio else "a.ome.tif"))
    whole = open_slide(path).whole()
    slide = open_slide(spoil_tile(path))  # the second row of tiles, the second of it
    bad = slice(70, 120), slice(70, 120)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"{path.name}: level 0 .*row 70, column 70.* leave this region out"):
            slide.read(*bad)
        good = slice(130, 200), slice(0, 400)
        assert np.array_equal(slide.read(*good), whole[good])


def test_a_thumbnail_is_made_without_what_does_not_decode(tmp_path, caplog):
    image = np.tile(IMAGE, (2, 2, 1))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", compression="zlib")
    whole = open_slide(path).thumbnail(200)
    seen = open_slide(spoil_tile(path, tile=3)).thumbnail(200)
    rows, columns = slice(0, 64), slice(64, 128)  # of the part that touches the tile
    assert (seen[rows, columns] == 255).all()
    seen[rows, columns] = whole[rows, columns]
    assert np.array_equal(seen, whole)
    assert "a.tif: 14 % of it do not decode" in caplog.text
    for tile in range(35):
        spoil_tile(path, tile=tile)
    with pytest.raises(DataError, match=r"a\.tif: no part of it decodes. Copy the file again"):
        open_slide(path).thumbnail(200)


def test_levels_of_openslide_have_no_seams(tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v10\n1000x900 (64x64)|AppMag = 20|MPP = 0.5"
    image = np.tile(IMAGE, (3, 3, 1))[:900, :1000]
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=text, **options)
        writer.write(image[: 900 // 3 - 1, : 1000 // 3 - 1].copy(), description=text, **options)
    slide = open_slide(path)
    assert not slide.levels[1].is_integer()
    height, width = slide.level_shape(1)
    whole = slide.read(slice(0, height), slice(0, width), 1)
    for rows, columns in ((slice(7, 280), slice(11, 290)), (slice(255, 257), slice(250, 300))):
        assert np.array_equal(slide.read(rows, columns, 1), whole[rows, columns])


def test_a_label_is_no_level(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGE, tile=(64, 64), photometric="rgb")
        writer.write(IMAGE[::2, ::2].copy(), tile=(64, 64), photometric="rgb", subfiletype=1)
        writer.write(IMAGE[:60, :90].copy(), tile=(64, 64), photometric="rgb", subfiletype=1)  # of another shape
        writer.write(IMAGE[::4, ::4].copy(), photometric="rgb")  # without tiles: a thumbnail of a label
    assert open_slide(path).levels == (1.0, 2.0)


def test_levels_of_the_same_size_are_no_slide(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(IMAGE, tile=(64, 64), photometric="rgb")
    with pytest.raises(DataError, match=r"a\.tif: the TIFF holds 2 images of the same size, not one"):
        open_slide(path)


def test_a_size_that_cannot_be_is_refused(tmp_path):
    pytest.importorskip("openslide")
    path = aperio(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        wide, deep = tags["ImageWidth"].valueoffset, tags["ImageLength"].valueoffset
    good = path.read_bytes()

    def refused(at, value, message):
        data = bytearray(good)
        data[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            open_slide(path)

    refused(wide, 60_000, r"a\.svs: its levels, 60000 x 300 and 134 x 100 px, do not fit each other")
    refused(deep, 2**31 - 1, r"a\.svs: .*Copy")


def test_loops_in_a_pyramid_end(tmp_path):
    path = pyramid(tmp_path / "a.tif", sub=False)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[2].offset
        count = len(file.pages[2].tags)
    data = bytearray(path.read_bytes())
    data[last + 2 + 12 * count : last + 6 + 12 * count] = first.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: the TIFF is damaged \(its pages lead back to an earlier one\)"):
        open_slide(path)
    with pytest.raises(DataError, match=r"a\.tif: the TIFF is damaged \(its pages lead back to an earlier one\)"):
        FileSource(path)
    nested = pyramid(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(nested) as file:
        page = file.pages[0]
        where, own = page.tags["SubIFDs"].valueoffset, page.offset
    data = bytearray(nested.read_bytes())
    data[where : where + 4] = own.to_bytes(4, "little")
    nested.write_bytes(data)
    slide = open_slide(nested)
    assert (slide.levels, np.array_equal(slide.whole(), IMAGE)) == ((1.0, 4.0), True)


@pytest.mark.parametrize("text", ["MPP = 0.0001", "MPP = 40"])
def test_a_pixel_size_that_cannot_be_is_refused_or_replaced(tmp_path, text):
    pytest.importorskip("openslide")
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path, IMAGE, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None,
        description=f"Aperio Image Library v10\n400x300 (256x256)|AppMag = 20|{text}",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a\.svs: states pixels of .* Pass the right size as data\.mpp"):
        open_slide(path)
    assert open_slide(path, mpp=0.5).mpp == 0.5


@pytest.mark.parametrize("write", [aperio, pyramid])
@pytest.mark.parametrize("seed", range(12))
def test_damaged_slides_end_in_a_message(tmp_path, write, seed):
    """Whatever bytes are lost or changed, the file is refused by name, or some of its regions are."""
    pytest.importorskip("openslide")
    rng = np.random.default_rng(seed)
    path = write(tmp_path / ("a.svs" if write is aperio else "a.ome.tif"))
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    if seed % 3 == 0:
        data = data[:start]
    elif seed % 3 == 1:
        data[start : start + 500] = bytes(len(data[start : start + 500]))
    else:
        for _ in range(5):
            data[int(rng.integers(min(len(data), 1000)))] = int(rng.integers(256))
    path.write_bytes(data)
    said = f"{path}: Copy it"
    try:
        slide = open_slide(path, mpp=0.5)
        for level in range(len(slide.levels)):
            height, width = (min(side, 512) for side in slide.level_shape(level))
            seen = slide.read(slice(0, height), slice(0, width), level)
            assert seen.shape == (height, width, 3)
    except DataError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "Copy " in said or "copy " in said


def test_without_the_extra_pyramids_are_read_and_others_name_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert np.array_equal(open_slide(pyramid(tmp_path / "a.ome.tif")).whole(), IMAGE)
    (tmp_path / "a.mrxs").write_text("a slide")
    for path in (aperio(tmp_path / "a.svs"), tmp_path / "a.mrxs"):
        with pytest.raises(ConfigError, match=r'needs OpenSlide: pip install "ihc2he\[slides\]"'):
            open_slide(path)


def test_another_process_reads_too(tmp_path):
    slide = open_slide(pyramid(tmp_path / "a.ome.tif"))
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, b"y" if np.array_equal(slide.read(slice(0, 300), slice(0, 400)), IMAGE) else b"n")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"y"
    assert np.array_equal(slide.whole(), IMAGE)


def dicom(folder, series, steps=(1, 2)):
    """Write a slide of uncompressed DICOM files, one a level."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

    folder.mkdir(exist_ok=True)
    for step in steps:
        image = IMAGE[::step, ::step]
        height, width = image.shape[:2]
        down, across = -(-height // 64), -(-width // 64)
        padded = np.pad(image, ((0, down * 64 - height), (0, across * 64 - width), (0, 0)))
        frames = padded.reshape(down, 64, across, 64, 3).transpose(0, 2, 1, 3, 4)
        data, measures, shared, path = (pydicom.Dataset() for _ in range(4))
        measures.PixelSpacing, measures.SliceThickness = [0.00025 * step] * 2, 0.001
        shared.PixelMeasuresSequence = [measures]
        path.OpticalPathIdentifier = "1"
        data.update({
            "SOPClassUID": VLWholeSlideMicroscopyImageStorage, "SOPInstanceUID": f"{series}.{step}",
            "SeriesInstanceUID": series, "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "Modality": "SM",
            "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if step == 1 else "RESAMPLED"],
            "DimensionOrganizationType": "TILED_FULL", "TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height,
            "TotalPixelMatrixFocalPlanes": 1, "NumberOfOpticalPaths": 1, "NumberOfFrames": down * across,
            "Rows": 64, "Columns": 64, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
            "SharedFunctionalGroupsSequence": [shared], "OpticalPathSequence": [path],
        })  # fmt: skip
        data.PixelData = frames.tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / f"{series}_{step}.dcm", enforce_file_format=True)
    return folder


def test_dicom_is_read_by_file_and_by_folder(tmp_path):
    pytest.importorskip("openslide")
    folder = dicom(tmp_path / "slide", "1.2.5")
    for path in (folder, folder / "1.2.5_2.dcm"):
        slide = open_slide(path)
        assert (slide.shape, slide.levels, slide.mpp) == ((300, 400), (1.0, 2.0), 0.25)
        assert np.array_equal(slide.read(slice(50, 250), slice(60, 70)), IMAGE[50:250, 60:70])
        assert np.array_equal(slide.read(slice(0, 150), slice(60, 200), 1), IMAGE[::2, ::2][:, 60:])
    dicom(folder, "1.2.6")
    with pytest.raises(DataError, match=r"slide: holds 2 slides, expected one. .*: 1\.2\.5_1\.dcm, 1\.2\.6_1\.dcm"):
        open_slide(folder)


@pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")
@pytest.mark.parametrize(
    ("name", "shape", "mpp", "levels"),
    [
        ("other/cmu-1-small-region.svs", (2967, 2220), 0.499, 1),
        ("other/OS-1-detail.ome.tif", (1101, 1101), 0.2271, 1),
        ("ihc_unlabelled/OS-2-ndpi.ome.tif", (2202, 2202), 0.2271, 1),
        ("ihc_unlabelled/OS-2-vsi.ome.tif", (1445, 1445), 0.3461, 1),
        ("slides/fluorescence_hamamatsu.ndpi", (4864, 3968), 0.2282, 7),
        ("slides/small_HE_levels.tiff", (250, 300), None, 4),
    ],
)
def test_real_slides_are_read(name, shape, mpp, levels):
    pytest.importorskip("openslide")
    slide = open_slide(Path(str(REALDATA)) / name)
    assert (slide.shape, len(slide.levels)) == (shape, levels)
    assert slide.mpp == (mpp and pytest.approx(mpp, abs=1e-4))
    small = slide.thumbnail(200)
    assert small.std() > 10
    part = slide.read(slice(100, 200), slice(50, 250))
    assert np.array_equal(part[40:], slide.read(slice(140, 200), slice(50, 250)))
