"""Tables beside images: what is read, what is refused, and what may stand there besides."""

import logging

import pytest

from ihc2he.data.tables import read_rows, read_table
from ihc2he.errors import DataError, did_you_mean

COLUMNS = ("split", "um_per_px", "tissue")


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "tiles.csv").write_bytes(text.encode(encoding))
        return tmp_path / "tiles.csv"

    return write


@pytest.mark.parametrize(
    ("said", "name"),
    [("a", "a"), ("a.png", "a"), ("a.PNG", "a"), ("a.tif", "a"), ("sub/b", "sub/b"), ("sub\\b.jpeg", "sub/b"),
     ("./sub/b", "sub/b"), ("S.12.3", "S.12.3"), ("scan.tif", "scan.tif"), ("scan.tif.png", "scan.tif")],
)  # fmt: skip
def test_a_row_names_its_image_with_or_without_extension(table, said, name):
    images = ["a", "sub/b", "S.12.3", "scan.tif"]
    assert list(read_table(table(f"name\n{said}\n"), COLUMNS, images)) == [name]


@pytest.mark.parametrize("said", ["b", " a", "a ", "A", "sub/a", "a.svs"])
def test_a_row_without_an_image_is_an_error_that_names_the_nearest(table, said):
    with pytest.raises(
        DataError, match=rf"tiles\.csv, line 2: there is no image '{said}' below .*(Did you mean|Known)"
    ):
        read_table(table(f"name\n{said}\n"), COLUMNS, ["a", "sub/b"])


@pytest.mark.parametrize(
    ("column", "meant"),
    [("Split", "split"), (" split", "split"), ("SPLIT", "split"), ("splits", "split"), ("spilt", "split"),
     ("um per px", "um_per_px"), ("um_per_pixel", "um_per_px"), ("um/px", "um_per_px"), ("mpp", "um_per_px"),
     ("Tissue", "tissue"), ("Name", "name")],
)  # fmt: skip
def test_a_misspelt_column_is_an_error(table, column, meant):
    with pytest.raises(DataError, match=rf"tiles\.csv: the column '{column}' is not known\. Did you mean '{meant}'\?"):
        read_table(table(f"name,{column}\na,1\n"), COLUMNS, ["a"])


def test_other_columns_may_be_there_and_are_named_once(table, caplog):
    path = table("name,source,case,nuclei,height,width,licence,split,splits\na,b,c,1,2,3,d,train,x\n")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert read_table(path, COLUMNS, ["a"]) == {"a": {"name": "a", "split": "train"}}
    assert caplog.text.count("columns that are not read: 'source', 'case', 'nuclei'") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name;split\na;train\n",
            r"expected one called name\..*separated by commas\. Here they are separated by ';'\.",
        ),
        ("name\tsplit\na\ttrain\n", r"separated by commas\. Here they are separated by '\\t'\."),
        ("name,um_per_px\na,0,25\n", r"line 2: more fields than the first line names\. .*write 5\.5, not 5,5"),
        ("name,split\na\n", r"line 2: fewer fields than the first line names"),
        ("name,split,split\na,train,val\n", r"found the columns name, split, split, expected one called split"),
        ("split\ntrain\n", r"found the columns split, expected one called name"),
        ("", r"found the columns none, expected one called name"),
    ],
)
def test_what_is_no_table_with_commas_is_an_error(table, text, message):
    with pytest.raises(DataError, match=message):
        read_table(table(text), COLUMNS, ["a"])


def test_blanks_around_values_and_empty_lines_do_no_harm(table):
    assert read_rows(table("x,y\n 1 , 2\n\n3,4\n", "utf-8-sig"), ["x"], ["x", "y"]) == [
        (2, {"x": "1", "y": "2"}),
        (4, {"x": "3", "y": "4"}),
    ]


def test_the_first_of_many_names_are_listed():
    assert did_you_mean("zzz", map(str, range(1000))) == " Known: 0, 1, 10, 100, 101, ... (1000 in all)."
    assert did_you_mean("SPLIT ", ["name", "split"]) == " Did you mean 'split'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfen\0", r"tiles\.csv: not a CSV file in UTF-8"),
        (b'name,split\n"0,train\n', r"tiles\.csv: not a CSV file in UTF-8 \(unexpected end of data"),
        (b"name,split\n0,train,x\n", r"tiles\.csv, line 2: more fields than the first line names"),
        (b"name,split\n0\n", r"tiles\.csv, line 2: fewer fields than the first line names"),
        (b"name,split\n,train\n", r"tiles\.csv, line 2: the name is empty"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, message):
    (tmp_path / "tiles.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "tiles.csv")


def test_a_table_that_is_no_file_is_named(tmp_path):
    assert read_table(tmp_path / "tiles.csv") == {}
    (tmp_path / "tiles.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"tiles\.csv: found a folder, or a link to nothing"):
        read_table(tmp_path / "tiles.csv")
