"""Images in folders: links are followed, cycles noticed, what is not read is counted."""

import logging

import pytest

from ihc2he.images.finding import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("mine/a.png", "mine/sub/b.TIF", "elsewhere/c.jpg", "elsewhere/deep/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"image")
    return tmp_path / "mine"


def test_folders_reached_through_links_are_read(folder, tmp_path):
    (folder / "slides").symlink_to(tmp_path / "elsewhere")
    assert find_images(folder) == ["a.png", "slides/c.jpg", "slides/deep/d.png", "sub/b.TIF"]
    (tmp_path / "link").symlink_to(folder)
    assert find_images(tmp_path / "link") == ["a.png", "slides/c.jpg", "slides/deep/d.png", "sub/b.TIF"]


@pytest.mark.parametrize("target", ["mine", "mine/sub", "."])
def test_a_cycle_or_a_second_way_to_a_folder_is_left_out_with_a_warning(folder, tmp_path, caplog, target):
    (folder / "sub" / "again").symlink_to(tmp_path / target)
    assert find_images(folder) == ["a.png", "sub/b.TIF"]
    assert "left out 1 links to folders that are read already, such as" in caplog.text
    assert str(folder / "sub" / "again") in caplog.text


def test_a_folder_comes_by_its_own_name_before_a_link_to_it(folder):
    (folder / "first").symlink_to(folder / "sub")
    assert find_images(folder) == ["a.png", "sub/b.TIF"]


def test_links_to_files_are_read_and_links_to_nothing_named(folder, tmp_path, caplog):
    (folder / "e.png").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    (folder / "f.png").symlink_to(tmp_path / "nothing")
    assert find_images(folder) == ["a.png", "e.png", "sub/b.TIF"]
    assert "f.png, which is a link to nothing" in caplog.text


def test_other_files_are_counted_by_ending_once(folder, caplog):
    for name in ("1.svs", "2.SVS", "sub/3.bmp", "notes.txt", ".hidden.webp"):
        (folder / name).write_bytes(b"")
    for _ in range(2):
        find_images(folder)
    (message,) = caplog.messages
    assert "mine: files that are not read: {'.svs': 2" in message
    assert "'.bmp': 1" in message
    assert "'.txt': 1" in message
    assert ".webp" not in message


def test_files_that_may_lie_beside_images_are_not_mentioned(folder, caplog):
    (folder / "notes.txt").write_bytes(b"")
    (folder / "tiles.csv").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        find_images(folder)
    assert not caplog.records


def test_no_folder_holds_no_images(tmp_path):
    assert find_images(tmp_path / "none") == []
