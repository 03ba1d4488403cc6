"""Slides are read by region, with the levels of their pyramids, and what is wrong with them is said."""

import pickle

import numpy as np
import pytest
import tifffile

from ihc2he.errors import ConfigError, DataError
from ihc2he.images.slides import open_slide

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
