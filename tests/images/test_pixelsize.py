"""What a TIFF states about its pixel size is believed where it can be true, and compared with what is used."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ihc2he.errors import DataError
from ihc2he.images.pixelsize import compare_with_files, stated_mpp

IMAGE = np.zeros((16, 16, 3), np.uint8)
REALDATA = os.environ.get("IHC2HE_REALDATA")


@pytest.fixture
def write(tmp_path):
    def make(name="a.tif", **options):
        tifffile.imwrite(tmp_path / name, IMAGE, photometric="rgb", **options)
        return tmp_path / name

    return make


@pytest.fixture
def ome(write):
    def make(x, y=None, unit="µm", name="a.ome.tif", **options):
        sizes = {"PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y}
        units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
        return write(name, ome=True, metadata={"axes": "YXS", **sizes, **units}, **options)

    return make


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [(0.25, "µm", 0.25), (0.25, None, 0.25), (250, "nm", 0.25), (5e-4, "mm", 0.5), (5e-5, "cm", 0.5),
     (0.5, "pixel", None), (1.0, "µm", None), (0.001, "µm", None), (85.0, "µm", None), (0, "µm", None),
     (float("nan"), "µm", None)],
)  # fmt: skip
def test_ome(ome, size, unit, mpp):
    found = stated_mpp(ome(size, unit=unit))
    assert found == (None if mpp is None else pytest.approx(mpp))


def test_ome_comes_before_the_resolution(ome):
    assert stated_mpp(ome(0.25, resolution=(20000, 20000), resolutionunit="CENTIMETER")) == 0.25


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [((40000, 40000), "CENTIMETER", 0.25), ((50800, 50800), "INCH", 0.5), ((72, 72), "INCH", None),
     ((300, 300), "INCH", None), ((1200, 1200), "INCH", None), ((40000, 40000), "NONE", None), ((0, 0), "INCH", None)],
)  # fmt: skip
def test_resolution(write, resolution, unit, mpp):
    found = stated_mpp(write(resolution=resolution, resolutionunit=unit))
    assert found == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(("unit", "mpp"), [("micron", 0.25), ("um", 0.25), ("pixel", None), ("inch", None)])
def test_imagej_has_its_own_unit(write, unit, mpp):
    assert stated_mpp(write(imagej=True, resolution=(4, 4), metadata={"unit": unit})) == mpp


def test_other_files_state_nothing(write, write_image, tmp_path):
    for name in ("a.png", "b.jpg"):
        write_image(tmp_path / name, IMAGE)
        assert stated_mpp(tmp_path / name) is None
    plain = write()
    assert stated_mpp(plain) is None
    plain.write_bytes(plain.read_bytes()[:60])
    assert stated_mpp(plain) is None, "reading it tells that it is damaged"
    assert stated_mpp(tmp_path / "none.tif") is None


@pytest.mark.parametrize(
    "text", ["<OME><Pixels PhysicalSizeX='0.25'", "<OME/>", "<OME><Pixels PhysicalSizeX='x'/></OME>"]
)
def test_broken_xml_states_nothing(write, text):
    assert stated_mpp(write("a.ome.tif", description=text, metadata=None)) is None


def test_pixels_that_are_not_square_are_an_error(ome, write):
    with pytest.raises(DataError, match=r"a\.ome\.tif: states pixels of 0\.25 x 0\.26 um, expected square ones"):
        stated_mpp(ome(0.25, 0.26))
    with pytest.raises(DataError, match=r"states pixels of 0\.5 x 0\.25 um.* pass data\.mpp"):
        stated_mpp(write(resolution=(20000, 40000), resolutionunit="CENTIMETER"))
    assert stated_mpp(ome(0.25, 0.254)) == pytest.approx(0.252)


def test_what_ome_contradicts_is_counted_and_the_first_is_named(ome, write, caplog):
    caplog.set_level(logging.INFO)
    files = {
        ome(0.25, name="same.ome.tif"): 0.25,
        ome(0.26, name="near.ome.tif"): 0.25,
        ome(0.5, name="other.ome.tif"): 0.25,
        ome(0.2, 0.5, name="long.ome.tif"): 0.25,
        write("print.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER"): 0.25,
    }
    compare_with_files(files)
    said, warned = (record.getMessage() for record in caplog.records)
    assert said.startswith("1 of 5 images are read with the pixel size that they state, such as ")
    assert said.endswith("same.ome.tif (0.25 um/px).")
    assert warned.startswith("2 of 5 images state another pixel size than the one they are read with: ")
    assert warned.endswith("other.ome.tif states 0.5 um/px, 0.25 is used. Check which is right.")


@pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")
@pytest.mark.parametrize(
    ("name", "mpp"),
    [("ihc_unlabelled/OS-2-ndpi.ome.tif", 0.2271), ("ihc_unlabelled/OS-2-vsi.ome.tif", 0.34605),
     ("other/OS-1-detail.ome.tif", 0.2271), ("ihc_unlabelled/OS-2-ndpi.png", None)],
)  # fmt: skip
def test_real_files(name, mpp):
    found = stated_mpp(Path(REALDATA) / name)
    assert found == (None if mpp is None else pytest.approx(mpp, rel=1e-4))
