"""Regions of files are those of the whole, however a file is laid out."""

import gc
import pickle

import numpy as np
import pytest
import tifffile

from ihc2he.errors import DataError
from ihc2he.images import source as module
from ihc2he.images.source import ArraySource, FileSource

IMAGE = np.random.default_rng(0).integers(0, 256, (150, 130, 3), np.uint8)
LAYOUTS = {
    "tiles": {"tile": (64, 48), "compression": "zlib"},
    "LZW tiles": {"tile": (64, 48), "compression": "lzw", "predictor": True},
    "strips": {"rowsperstrip": 32, "compression": "zlib"},
    "plain": {},
    "plain, big endian": {"byteorder": ">"},
    "planes": {"planarconfig": "separate", "tile": (32, 32)},
    "planes in strips": {"planarconfig": "separate", "rowsperstrip": 16, "compression": "lzw"},
}


def written(path, layout):
    options = LAYOUTS[layout]
    values = IMAGE.transpose(2, 0, 1) if "planarconfig" in options else IMAGE
    tifffile.imwrite(path, values, photometric="rgb", **options)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_of_a_tiff_are_read_without_the_rest(layout, tmp_path, monkeypatch):
    path = written(tmp_path / "a.tif", layout)
    monkeypatch.setattr(module, "read_image", None)  # the whole is never decoded
    source = FileSource(path, mpp=0.5)
    assert (source.shape, source.mpp, source.name) == ((150, 130), 0.5, str(path))
    for rows, columns in (
        (slice(0, 150), slice(0, 130)),
        (slice(50, 51), slice(47, 97)),
        (slice(100, 150), slice(3, 9)),
    ):
        assert np.array_equal(source.read(rows, columns), IMAGE[rows, columns])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.whole(), IMAGE)
    file = again._page.parent.filehandle
    gc.disable()
    del again
    gc.enable()
    assert file.closed


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_other_files_are_decoded_once(name, tmp_path, write_image, monkeypatch):
    if name == "a.png":
        write_image(tmp_path / name, IMAGE)
    else:  # turned, so regions as stored are not those that are shown
        stored = np.ascontiguousarray(np.rot90(IMAGE, 1))
        tifffile.imwrite(tmp_path / name, stored, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    seen = []
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: (seen.append(path), read(path))[1])
    source = FileSource(tmp_path / name)
    assert source.shape == (150, 130)
    assert not source.by_region
    assert not seen
    assert np.array_equal(source.read(slice(9, 20), slice(30, 40)), IMAGE[9:20, 30:40])
    assert np.array_equal(source.whole(), IMAGE)
    assert len(seen) == 1


def test_a_thumbnail_shows_the_whole(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 64)
    rows, columns = np.mgrid[:300, :200]
    image = np.stack([rows * 255 // 300, columns * 255 // 200, 0 * rows], -1).astype(np.uint8)
    small = ArraySource(image).thumbnail(30)
    assert small.shape == (30, 20, 3)
    assert np.abs(small[..., 0].astype(int) - ((np.arange(30) + 0.5) * 8.5)[:, None]).max() <= 4
    assert np.abs(small[..., 1].astype(int) - (np.arange(20) + 0.5) * 12.75).max() <= 4
    assert ArraySource(image).thumbnail(300) is not None
    assert np.array_equal(ArraySource(image).thumbnail(300), image)


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tif: cannot be read"):
        FileSource(tmp_path / "gone.tif")
    path = written(tmp_path / "a.tif", "tiles")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.tif: the TIFF is (truncated|damaged)"):
        FileSource(path)
