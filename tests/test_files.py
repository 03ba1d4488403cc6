import errno

import pytest

from ihc2he.files import complete, complete_folder, read_csv, restore, write_csv, write_text


def test_a_file_appears_when_its_block_has_ended(tmp_path):
    path = tmp_path / "new" / "picture.png"
    with complete(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent
        assert temporary.suffix == ".png"
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), complete(path) as temporary:  # noqa: PT012
        temporary.write_text("hal")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("columns", "header"), [(None, ["name", "ssim", "psnr"]), (["psnr", "name", "ssim"],) * 2])
def test_csv_has_all_columns_in_order_and_empty_cells_for_what_is_missing(tmp_path, columns, header):
    write_csv(tmp_path / "a.csv", [{"name": "tile, one", "ssim": 0.5}, {"name": "2", "psnr": 20.0}], columns)
    rows = read_csv(tmp_path / "a.csv")
    assert list(rows[0]) == header
    assert rows == [{"name": "tile, one", "ssim": "0.5", "psnr": ""}, {"name": "2", "ssim": "", "psnr": "20.0"}]


def test_a_missing_table_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "a.csv") == []


def test_a_row_with_an_unknown_column_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="psnr"):
        write_csv(tmp_path / "a.csv", [{"name": "1", "psnr": 1.0}], ["name"])
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_temporary_file_replaces_what_a_killed_process_left(tmp_path):
    path, part = tmp_path / "tiles.h5", tmp_path / "tiles.h5.part"
    part.write_text("of the killed one")
    with complete(path, temporary=part) as temporary:
        assert temporary == part
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_is_utf_8_and_replaces_the_former_one(tmp_path):
    for text in ("old and longer", "0.5 µm\n"):
        write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == "0.5 µm\n".encode()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"), complete(tmp_path / "a.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_replacement_was_interrupted_is_put_back(tmp_path):
    folder = tmp_path / "tiles"
    for put_back in (restore, lambda path: complete_folder(path).__enter__()):
        folder.mkdir()
        (folder / "work.txt").write_text("of days")
        folder.rename(tmp_path / ".tiles.old")  # as far as a killed process came
        put_back(folder)
        assert (folder / "work.txt").read_text() == "of days"
        (folder / "work.txt").unlink()
        folder.rmdir()
