"""What TIFF, PNG and JPEG files say of their samples is followed: a file is made for each, and its pixels are known."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile

from ihc2he.errors import DataError
from ihc2he.images.decoding import read_image
from ihc2he.images.labels import read_labels

RGB = np.array(
    [[[200, 30, 40], [10, 220, 60]], [[70, 80, 240], [90, 100, 110]], [[0, 128, 255], [7, 77, 177]]], np.uint8
)
GREY = np.array([[0, 85, 170, 255], [255, 0, 0, 85]], np.uint8)
LABELS = np.array([[0, 1, 2, 3], [3, 0, 0, 1]], np.uint8)
BILEVEL = np.where(LABELS > 1, 255, 0).astype(np.uint8)
MAP_N3 = np.array([[9, 8, 7], [60, 50, 40], [110, 120, 130], [250, 240, 230]], np.uint8)
OPACITY = np.array([[255, 0], [51, 255], [102, 0]], np.uint8)
# 255 - (255 - colour) * opacity / 255
OVER_WHITE = np.array(
    [[[200, 30, 40], [255, 255, 255]], [[218, 220, 252], [90, 100, 110]], [[153, 204, 255], [255, 255, 255]]], np.uint8
)


def grey3(image):
    return np.stack([image] * 3, -1)


def save(path, values, **options):
    """Write a TIFF; what is one number of bits wide is packed by tifffile."""
    tifffile.imwrite(path, values, **options)
    return path


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path, colour, bits, rows, width, *chunks):
    """Write a PNG by hand, of rows of packed bytes."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def packed(values, bits):
    """Return rows of bytes that hold values of few bits, the first in the highest bits."""
    each = 8 // bits
    return [
        [sum(int(v) << (8 - bits * (i + 1)) for i, v in enumerate(row[k : k + each])) for k in range(0, len(row), each)]
        for row in values
    ]


def exif(orientation, order=">"):
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


# ------------------------------------------------------------------ TIFF

FOUR = np.dstack([RGB, OPACITY])
PREMULTIPLIED = np.dstack([np.rint(RGB * (OPACITY[..., None] / 255)).astype(np.uint8), OPACITY])
YCBCR = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
COLOURMAP = np.zeros((3, 256), np.uint16)
COLOURMAP[:, :4] = MAP_N3.T.astype(np.uint16) * 257
EIGHT_BITS = np.zeros((3, 256), np.uint16)
EIGHT_BITS[:, :4] = MAP_N3.T

TIFFS = {
    "rgb": (RGB, {"photometric": "rgb"}, RGB),
    "16 bits": (RGB.astype(np.uint16) * 257, {"photometric": "rgb"}, RGB),
    "big endian": (RGB.astype(np.uint16) * 257, {"photometric": "rgb", "byteorder": ">"}, RGB),
    "BigTIFF": (RGB, {"photometric": "rgb", "bigtiff": True}, RGB),
    "planes": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "LZW": (RGB, {"photometric": "rgb", "compression": "lzw"}, RGB),
    "LZW, predictor": (RGB, {"photometric": "rgb", "compression": "lzw", "predictor": True}, RGB),
    "deflate, predictor, 16 bits": (
        RGB.astype(np.uint16) * 257, {"photometric": "rgb", "compression": "zlib", "predictor": True}, RGB,
    ),
    "packbits": (RGB, {"photometric": "rgb", "compression": "packbits"}, RGB),
    "zstd": (RGB, {"photometric": "rgb", "compression": "zstd"}, RGB),
    "tiles": (RGB, {"photometric": "rgb", "tile": (16, 16)}, RGB),
    "strips": (RGB, {"photometric": "rgb", "rowsperstrip": 1}, RGB),
    "grey": (GREY, {"photometric": "minisblack"}, grey3(GREY)),
    "white is 0": (GREY, {"photometric": "miniswhite"}, grey3(255 - GREY)),
    "white is 0, 16 bits": (GREY.astype(np.uint16) * 257, {"photometric": "miniswhite"}, grey3(255 - GREY)),
    "1 bit": (LABELS > 1, {"photometric": "minisblack"}, grey3(BILEVEL)),
    "1 bit, white is 0": (LABELS > 1, {"photometric": "miniswhite"}, grey3(255 - BILEVEL)),
    "2 bits": (LABELS, {"photometric": "minisblack", "bitspersample": 2}, grey3(GREY)),
    "4 bits": (LABELS * 5, {"photometric": "minisblack", "bitspersample": 4}, grey3(GREY)),
    "12 bits": (GREY * np.uint16(16) + GREY // 16, {"photometric": "minisblack", "bitspersample": 12}, grey3(GREY)),
    "palette": (LABELS, {"photometric": "palette", "colormap": COLOURMAP}, MAP_N3[LABELS]),
    "palette of 8 bits": (LABELS, {"photometric": "palette", "colormap": EIGHT_BITS}, MAP_N3[LABELS]),
    "fourth channel that is nothing": (FOUR, {"photometric": "rgb", "extrasamples": ["unspecified"]}, RGB),
    "opacity": (FOUR, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, OVER_WHITE),
    "opacity, premultiplied": (PREMULTIPLIED, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, OVER_WHITE),
    "opacity in the fifth": (
        np.dstack([RGB, 0 * OPACITY, OPACITY]),
        {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["unspecified", "unassalpha"]}, OVER_WHITE,
    ),
    "grey and opacity": (
        np.dstack([GREY, np.full_like(GREY, 51)]), {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        grey3(255 - (255 - GREY) // 5),
    ),
    "YCbCr without JPEG": (YCBCR, {"photometric": "ycbcr", "compression": "zlib"}, RGB),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff(kind, tmp_path):
    values, options, expected = TIFFS[kind]
    image = read_image(save(tmp_path / "a.tif", values, **options))
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= (2 if "YCbCr" in kind or "premultiplied" in kind else 0)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_jpeg_inside_of_a_tiff(photometric, subsampling, tmp_path):
    flat = np.full((64, 64, 3), (200, 30, 40), np.uint8)
    options = {"subsampling": subsampling} if photometric == "ycbcr" else {}
    stored = cv2.cvtColor(flat, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]] if photometric == "ycbcr" else flat
    path = save(tmp_path / "a.tif", stored, photometric=photometric, compression="jpeg", tile=(32, 32), **options)
    assert np.abs(read_image(path).astype(int) - flat).max() <= 4


def test_smaller_copies_in_a_tiff_are_not_pages_of_their_own(tmp_path):
    large = np.repeat(np.repeat(RGB, 8, 0), 8, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(large, photometric="rgb", subifds=1)
        tiff.write(large[::2, ::2], photometric="rgb", subfiletype=1)
        tiff.write(large[::4, ::4], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif"), large)


TURNED = {  # by hand: the stored image that has to be turned so
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, 1), 7: np.rot90(RGB, 2).transpose(1, 0, 2), 8: np.rot90(RGB, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(orientation, tmp_path):
    stored = np.ascontiguousarray(TURNED[orientation])
    path = save(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_image(path), RGB)
    rows = stored.reshape(len(stored), -1)
    assert np.array_equal(
        read_image(png(tmp_path / "a.png", 2, 8, rows, stored.shape[1], (b"eXIf", exif(orientation)))), RGB
    )
    big = np.repeat(np.repeat(stored, 16, 0), 16, 1)
    jpeg = cv2.imencode(".jpg", big[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    block = b"Exif\0\0" + exif(orientation, "<")
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:])
    upright = read_image(tmp_path / "a.jpg")[8::16, 8::16]
    assert upright.shape == RGB.shape
    assert np.abs(upright.astype(int) - RGB).max() < 40  # colours bleed at this size


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.dstack([GREY] * 4), {"photometric": "minisblack", "planarconfig": "contig"}, "4 channels of grey"),
        (RGB.astype(np.uint32), {"photometric": "rgb"}, "found uint32 pixels"),
        (RGB.astype(np.int16), {"photometric": "rgb"}, "found int16 pixels"),
        (FOUR, {"photometric": "separated"}, "SEPARATED colours"),
        (RGB, {"photometric": "cielab"}, "CIELAB colours"),
    ],
)
def test_other_tiffs_are_refused(values, options, message, tmp_path):
    with pytest.raises(DataError, match=rf"a\.tif: .*{message}"):
        read_image(save(tmp_path / "a.tif", values, **options))


# ------------------------------------------------------------------ PNG

PNGS = {
    "1 bit": (0, 1, packed(LABELS > 1, 1), 4, (), grey3(np.where(LABELS > 1, 255, 0))),
    "2 bits": (0, 2, packed(LABELS, 2), 4, (), grey3(GREY)),
    "4 bits": (0, 4, packed(LABELS * 5, 4), 4, (), grey3(GREY)),
    "16 bits": (0, 16, [np.repeat(row, 2) for row in GREY], 4, (), grey3(GREY)),
    "grey and opacity": (
        4, 8, [np.stack([row, row * 0 + 51], -1).ravel() for row in GREY], 4, (), grey3(255 - (255 - GREY) // 5),
    ),
    "a grey level that is transparent": (
        0, 8, GREY, 4, ((b"tRNS", struct.pack(">H", 85)),), grey3(np.where(GREY == 85, 255, GREY)),
    ),
    "a grey level of 2 bits that is transparent": (
        0, 2, packed(LABELS, 2), 4, ((b"tRNS", struct.pack(">H", 0)),), grey3(np.where(GREY == 0, 255, GREY)),
    ),
    "a colour that is transparent": (
        2, 8, RGB.reshape(3, -1), 2, ((b"tRNS", struct.pack(">HHH", *RGB[0, 1])),),
        np.where((RGB[0, 1] == RGB).all(-1, keepdims=True), 255, RGB),
    ),
    "palette": (3, 8, LABELS, 4, ((b"PLTE", MAP_N3.tobytes()),), MAP_N3[LABELS]),
    "palette of 2 bits": (3, 2, packed(LABELS, 2), 4, ((b"PLTE", MAP_N3.tobytes()),), MAP_N3[LABELS]),
    "palette with opacity": (
        3, 8, LABELS, 4, ((b"PLTE", MAP_N3.tobytes()), (b"tRNS", b"\xff\0")),
        np.where((LABELS == 1)[..., None], 255, MAP_N3[LABELS]),
    ),
    "gamma and colour space, which are not looked at": (
        2, 8, RGB.reshape(3, -1), 2, ((b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0")), RGB,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PNGS)
def test_png(kind, tmp_path):
    colour, bits, rows, width, chunks, expected = PNGS[kind]
    assert np.array_equal(read_image(png(tmp_path / "a.png", colour, bits, rows, width, *chunks)), expected)


# ------------------------------------------------------------------ JPEG


def jpeg(**options):
    image = cv2.resize(RGB[:2, :2], (64, 64), interpolation=cv2.INTER_CUBIC)
    codes = [v for name, value in options.items() for v in (getattr(cv2, f"IMWRITE_JPEG_{name.upper()}"), value)]
    return image, cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98, *codes])[1].tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": 1}, {"rst_interval": 1}, {"optimize": 1}])
def test_whatever_follows_the_end_of_a_jpeg_it_is_whole(options, tmp_path):
    image, data = jpeg(**options)
    for name, after in (
        ("plain", b""),
        ("marks", b"\xff\xda\0\0 scan"),
        ("second", jpeg()[1][:-2]),
        ("zeros", bytes(9)),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(data + after)
        assert np.abs(read_image(tmp_path / f"{name}.jpg").astype(int) - image).max() < 30
    (tmp_path / "cut.jpg").write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"cut\.jpg: the JPEG is truncated"):
        read_image(tmp_path / "cut.jpg")


def test_adobe_says_whether_three_inks_are_rgb(tmp_path):
    import imagecodecs

    flat = np.full((32, 32, 3), (200, 30, 40), np.uint8)
    for space in ("rgb", "ycbcr"):
        (tmp_path / "a.jpg").write_bytes(
            imagecodecs.jpeg8_encode(flat, level=98, colorspace="rgb", outcolorspace=space)
        )
        assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - flat).max() <= 4
    inks = np.dstack([flat, flat[..., :1]])
    for space in ("cmyk", "ycck"):
        (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(inks, colorspace="cmyk", outcolorspace=space))
        with pytest.raises(DataError, match=r"a\.jpg: the JPEG has 4 inks, not grey or RGB"):
            read_image(tmp_path / "a.jpg")


def test_more_pixels_than_can_be_decoded_at_once(tmp_path):
    path = png(tmp_path / "a.png", 2, 8, [b""] * 40_000, 30_000)
    with pytest.raises(DataError, match=r"30000x40000 px are more .*Save it as a tiled TIFF") as caught:
        read_image(path)
    assert "PNG." not in str(caught.value).replace("PNG, JPEG or TIFF", "")


# ------------------------------------------------------------------ labels

LABEL_TIFFS = {
    "LZW, 8 bits": (LABELS, {"compression": "lzw"}),
    "LZW, 16 bits, predictor": (LABELS.astype(np.uint16) * 999, {"compression": "lzw", "predictor": True}),
    "LZW, 32 bits": (LABELS.astype(np.uint32) * 99_999, {"compression": "lzw"}),
    "signed": (LABELS.astype(np.int32), {}),
    "4 bits": (LABELS, {"bitspersample": 4}),
    "1 bit": (LABELS > 1, {}),
    "white is 0": (LABELS, {"photometric": "miniswhite"}),
    "palette": (LABELS, {"photometric": "palette", "colormap": COLOURMAP}),
    "tiles": (LABELS, {"tile": (16, 16)}),
}


@pytest.mark.parametrize("kind", LABEL_TIFFS)
def test_labels_are_the_values_as_stored(kind, tmp_path):
    values, options = LABEL_TIFFS[kind]
    path = save(tmp_path / "a.tif", values, **({"photometric": "minisblack"} | options))
    assert np.array_equal(read_labels(path), values)
    assert read_labels(path).dtype == np.int32


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_labels_of_few_bits_or_with_a_palette_are_the_values_as_stored(bits, tmp_path):
    rows = packed(LABELS, bits)
    assert np.array_equal(read_labels(png(tmp_path / "a.png", 0, bits, rows, 4)), LABELS)
    coloured = png(tmp_path / "b.png", 3, bits, rows, 4, (b"PLTE", MAP_N3.tobytes()), (b"tRNS", b"\0"))
    assert np.array_equal(read_labels(coloured), LABELS)


def test_labels_are_turned_as_their_image_is(tmp_path):
    path = png(tmp_path / "a.png", 0, 8, LABELS, 4, (b"eXIf", exif(6)))
    assert np.array_equal(read_labels(path), np.rot90(LABELS, -1))
    path = save(tmp_path / "a.tif", LABELS, photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(read_labels(path), np.rot90(LABELS, -1))


def test_jpeg_changes_labels_wherever_it_hides(tmp_path):
    values = np.zeros((32, 32), np.uint8)
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", values)[1].tobytes())
    save(tmp_path / "b.tif", values, compression="jpeg", photometric="minisblack")
    for name in ("a.jpg", "b.tif"):
        with pytest.raises(DataError, match=f"{name}: JPEG changes the values"):
            read_labels(tmp_path / name)
