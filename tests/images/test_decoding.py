import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.finding import find_images
from ihc2he.tiling.resampling import resample, resize


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF"])
def test_lossless_files_come_back_as_they_were(tmp_path, make_tile, write_image, name):
    image = make_tile(0)
    write_image(tmp_path / name, image)
    np.testing.assert_array_equal(read_image(tmp_path / name), image)


def test_jpeg_channels_are_in_order(tmp_path, write_image):
    write_image(tmp_path / "a.jpg", np.full((40, 40, 3), (200, 100, 50), np.uint8))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (200, 100, 50)).max() <= 3


def test_grey_becomes_three_equal_channels(tmp_path, make_tile, write_image):
    grey = make_tile(0)[..., 0]
    write_image(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, -1))


def test_transparent_pixels_become_white_and_half_transparent_ones_lighter(tmp_path, write_image):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = (100, 50, 0)
    rgba[:, :8, 3] = 255
    rgba[:, 8:16, 3] = 51
    write_image(tmp_path / "a.png", rgba)
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [100, 50, 0]
    assert image[0, 8].tolist() == [224, 214, 204]  # 255 - (255 - colour) / 5
    assert image[0, 31].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_is_scaled_by_its_full_range(tmp_path, make_tile, write_image, name):
    image = make_tile(0)
    write_image(tmp_path / name, image.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / name), image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_files_are_named(tmp_path, make_tile, write_image, suffix, kept):
    whole = tmp_path / f"whole{suffix}"
    write_image(whole, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
    with pytest.raises(DataError, match=f"cut{suffix}: .*(empty|truncated|damaged|not a PNG)"):
        read_image(cut)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, make_tile, write_image):
    write_image(tmp_path / "a.png", make_tile(0))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: the PNG is corrupt at byte \d+ \(checksum of chunk IDAT\)"):
        read_image(tmp_path / "a.png")


def test_a_jpeg_cut_after_its_thumbnail_is_noticed(tmp_path, make_tile):
    _, encoded = cv2.imencode(".jpg", make_tile(0))
    thumbnail = b"\xff\xe1\x00\x10Exif\0\0\xff\xd8\xff\xda\xff\xd9xx"  # an application segment with an end marker
    data = encoded.tobytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + thumbnail + data[2:-300])
    with pytest.raises(DataError, match=r"a\.jpg: the JPEG is truncated"):
        read_image(tmp_path / "a.jpg")


def test_text_under_an_image_name_is_named(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(DataError, match=r"a\.png: the content is not a PNG, JPEG or TIFF"):
        read_image(tmp_path / "a.png")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png: cannot be read \(No such file"):
        read_image(tmp_path / "nowhere.png")


def test_float_tiff_says_what_is_expected(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40), np.float32))
    with pytest.raises(DataError, match=r"a\.tif: found float32 pixels, expected 8 or 16 bits.*8-bit RGB PNG"):
        read_image(tmp_path / "a.tif")


def test_multi_page_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint8), photometric="minisblack")
    with pytest.raises(DataError, match=r"a\.tif: the TIFF holds 3 pages, not one"):
        read_image(tmp_path / "a.tif")


def test_find_images_recurses_and_passes_over_the_rest(tmp_path):
    for name in ("b.PNG", "a.jpeg", "sub/deep/c.Tif", "notes.txt", "._b.PNG", "sub/.hidden.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == ["a.jpeg", "b.PNG", "sub/deep/c.Tif"]
    assert find_images(tmp_path / "missing") == []


def test_what_bears_the_name_of_an_image_and_is_none_is_counted(tmp_path, caplog):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to("nowhere")
    (tmp_path / "c.png").mkdir()
    assert find_images(tmp_path) == ["a.png"]
    assert (
        f"left out 2 entries named like images, such as {tmp_path / 'b.png'}, which is a link to nothing" in caplog.text
    )


def test_inks_of_print_are_not_taken_for_transparency(tmp_path, make_tile):
    inks = np.dstack([make_tile(0), make_tile(1)[..., :1]])
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    with pytest.raises(DataError, match=r"a\.tif: the TIFF has SEPARATED colours, not grey or RGB"):
        read_image(tmp_path / "a.tif")
    rgb = cv2.imencode(".jpg", make_tile(0))[1].tobytes()
    frame = rgb.index(b"\xff\xc0")
    (tmp_path / "b.jpg").write_bytes(rgb[: frame + 9] + b"\x04" + rgb[frame + 10 :])
    with pytest.raises(DataError, match=r"b\.jpg: the JPEG has 4 inks, not grey or RGB"):
        read_image(tmp_path / "b.jpg")


def test_shrinking_averages_so_that_fine_stripes_do_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 200
    np.testing.assert_array_equal(resize(stripes, 16, 16), 50)
    assert (resize(stripes, 128, 16) == 50).all(), "each axis has its own filter"


def test_enlarging_is_bicubic():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    expected = cv2.resize(image, (48, 32), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resize(image, 32, 48), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(0, 255))
def test_resizing_keeps_a_constant_image_constant(height, width, new_height, new_width, value):
    image = np.full((height, width, 3), value, np.uint8)
    resized = resize(image, new_height, new_width)
    assert resized.shape == (new_height, new_width, 3)
    assert (resized == value).all()


def test_resampling_at_the_same_scale_changes_nothing(make_tile):
    image = make_tile(0)
    np.testing.assert_array_equal(resample(image, 0.46, 0.46), image)
