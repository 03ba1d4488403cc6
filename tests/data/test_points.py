import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihc2he.data.points import Faults, Point, PointsDataModule, keep_good, read_points
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.decoding import image_size

CLASSES = ["stroma", "epithelium"]


@pytest.fixture
def root(tmp_path, write_image, make_tile):
    """Two tiles of 40 px, one in a sub-folder; the second has no nuclei."""
    root = tmp_path / "mine"
    write_image(root / "images" / "a.png", make_tile(0, 40))
    write_image(root / "images" / "slide" / "b.jpg", make_tile(1, 40))
    (root / "points" / "slide").mkdir(parents=True)
    (root / "points" / "a.csv").write_text("class,y,x,by\nstroma,3,7,me\n1,39,0,me\nepithelium,3.4,8.6,me\n")
    (root / "points" / "slide" / "b.csv").write_text("x,y,class\n")
    return root


def ready(root, **arguments):
    defaults = {"root": str(root), "classes": CLASSES, "mpp": 0.5, "num_workers": 0}
    data = PointsDataModule(**(defaults | arguments))
    data.setup()
    return data


def test_a_batch_has_the_points_beside_the_images(root, make_tile):
    data = ready(root)
    (batch,) = data.test_dataloader()
    assert batch["name"] == ["a", "slide/b"]
    assert batch["group"] == ["", ""]
    assert batch["mpp"] == [0.5, 0.5]
    assert (batch["image"][0] == make_tile(0, 40)).all()
    assert [points.dtype for points in batch["points"]] == [np.int64] * 2
    assert batch["points"][0].tolist() == [[7, 3, 0], [0, 39, 1], [9, 3, 1]]
    assert batch["points"][1].shape == (0, 3)
    assert batch["readers"][0]["points"].tolist() == batch["points"][0].tolist()
    assert set(batch) == {"name", "group", "image", "mpp", "points", "readers", "second_readings"}
    assert (data.classes, data.truth_classes) == (CLASSES, [])


def test_without_classes_all_points_are_one(root):
    data = ready(root, classes=None)
    assert data.classes == []
    assert data.tiles[0].points_n3[:, 2].tolist() == [0, 0, 0]


def test_the_table_tells_pixel_sizes_and_cases(root):
    (root / "tiles.csv").write_text("name,um_per_px,case\na.png,0.25,P1\n")
    assert [(tile.mpp, tile.group) for tile in ready(root).tiles] == [(0.25, "P1"), (0.5, "")]
    with pytest.raises(ConfigError, match=r"pixel size of .*b\.jpg is not known"):
        ready(root, mpp=None)


def test_a_row_of_the_table_without_an_image_is_an_error(root):
    (root / "tiles.csv").write_text("name,um_per_px\na.png,0.25\nslide/bb,0.25\n")
    with pytest.raises(
        DataError, match=r"tiles\.csv, line 3: there is no image 'slide/bb' below .*Did you mean 'slide/b'\?"
    ):
        ready(root)


def test_an_image_without_points_and_the_reverse_are_named(root):
    csv = root / "points" / "slide" / "b.csv"
    csv.rename(root / "points" / "b.csv")
    with pytest.raises(DataError, match=r"b\.jpg has no CSV file in .*points \(1 such\)\. Expected this tree"):
        ready(root)
    (root / "images" / "slide" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.csv has no image in .*images \(1 such\)"):
        ready(root)
    (root / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"found no image in .*images\. Expected this tree"):
        ready(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: found the columns none, expected one called x"),
        ("x;y;class\n1;2;0\n", r"found the columns x;y;class, expected one called x\..*separated by commas"),
        ("x,y\n1,2\n", r"found the columns x, y, expected one called class"),
        ("x,y,class\n1,2,0\n1,,0\n", r"a\.csv, line 3: y is '', expected a number of px"),
        ("x,y,class\n1,2\n", r"line 2: fewer fields than the first line names"),
        ("x,y,class\nnan,1,0\n", r"line 2: x is 'nan'"),
        ("x,y,class\n1,2,2\n", r"line 2: class '2', expected a name of data\.classes or a number from 0\. Known: epi"),
        ("x,y,class\n1,2,epitelium\n", r"class 'epitelium'.*Did you mean 'epithelium'"),
        ('x,y,class\n"1,5",2,0\n', r"line 2: x is '1,5', expected a number of px\. Write 5\.5, not 5,5"),
        ("x,y,Class\n1,2,0\n", r"a\.csv: the column 'Class' is not known\. Did you mean 'class'\?"),
        ("x,y,class\n1,2,-1\n", r"class '-1'"),
        ("x,y,class\n1_0,2,0\n", r"line 2: x is '1_0', expected a number of px"),
        ("x,y,class\n1,5,2,0\n", r"line 2: more fields than the first line names\..*write 5\.5, not 5,5"),
        ("x,y,class,x\n1,2,0,3\n", r"found the columns x, y, class, x, expected one called x"),
        ('x,y,class\n"1,2,0\n3,4,0\n', r"a\.csv: not a CSV file in UTF-8 \(unexpected end of data"),
        ("x,y,class\n40,2,0\n", r"line 2: point \(40, 2\) lies outside of its tile of 40x40 px\. Mend the file\."),
        ("x,y,class\n0,-0.6,0\n", r"point \(0, -1\) lies outside"),
    ],
)
def test_a_bad_file_is_named_with_its_line(root, text, message):
    (root / "points" / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        ready(root)


def test_a_file_that_is_no_text(root):
    (root / "points" / "a.csv").write_bytes(b"x,y,class\n\xff\xfe,1,0\n")
    with pytest.raises(DataError, match=r"a\.csv: not a CSV file in UTF-8"):
        ready(root)


def test_a_repeated_point_is_left_out_with_a_warning(root, caplog):
    (root / "points" / "a.csv").write_text("x,y,class\n7,3,0\n7,3,0\n7,3,1\n")
    assert ready(root).tiles[0].points_n3.tolist() == [[7, 3, 0], [7, 3, 1]]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "left out 1 repeated points, such as" in record.getMessage()
    assert "a.csv, line 3: point (7, 3) repeats line 2" in record.getMessage()


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n")
    assert read_points(tmp_path / "a.csv", []) == [Point(2, 1, 2, 0)]


def test_the_size_of_an_image_is_that_of_its_pixels(tmp_path, write_image):
    for suffix in (".png", ".jpg", ".tif"):
        path = tmp_path / f"a{suffix}"
        write_image(path, np.zeros((30, 50, 3), np.uint8))
        assert image_size(path) == (30, 50)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a\.png"):
        image_size(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        image_size(tmp_path / "b.png")


@given(st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6), st.integers(0, 1)), max_size=30))
def test_what_is_kept_and_what_is_counted_make_up_the_file(rows):
    faults = Faults("skip", "")
    kept = keep_good([Point(i, *row) for i, row in enumerate(rows, 1)], (4, 5), "a.txt", faults).tolist()
    assert len({tuple(row) for row in kept}) == len(kept)
    assert all(0 <= x < 5 and 0 <= y < 4 for x, y, _ in kept)
    assert {tuple(row) for row in kept} == {(x, y, k) for x, y, k in rows if 0 <= x < 5 and 0 <= y < 4}
    assert len(kept) + sum(map(len, faults.found.values())) == len(rows)


def test_the_policies():
    for policy, raised in (("error", {"repeated points", "others"}), ("repeated", {"others"}), ("skip", set())):
        faults = Faults(policy, "Mend it.")
        for kind in ("repeated points", "others"):
            if kind in raised:
                with pytest.raises(DataError, match=r"^Here\. Mend it\.$"):
                    faults.add(kind, "Here.")
            else:
                faults.add(kind, "Here.")
        assert set(faults.found) == {"repeated points", "others"} - raised
