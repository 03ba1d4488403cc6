import cv2
import numpy as np
import pytest
import torch

from ihc2he.callbacks.panels import HEADER_PX, ImagePanels, panel
from ihc2he.images.writing import write_png


@pytest.fixture
def images():
    return torch.rand(3, 3, 10, 120, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pixels(image_chw):
    return ((image_chw + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_each_picture_lies_unchanged_under_its_title(images):
    canvas = panel([(f"picture {i}", image) for i, image in enumerate(images)], columns=2)
    height, width = 10 + HEADER_PX + 2, 120 + 4
    assert canvas.shape == (2 * height, 2 * width, 3)
    assert canvas.dtype == np.uint8
    for i, image in enumerate(images):
        top, left = i // 2 * height, i % 2 * width
        found = canvas[top + HEADER_PX : top + HEADER_PX + 10, left + 2 : left + 2 + 120]
        assert np.array_equal(found, pixels(image))
        assert canvas[top : top + HEADER_PX, left : left + width].min() < 100  # the title, in black
    assert (canvas[height:, width:] == 255).all()


def test_a_large_picture_is_shrunk_and_values_beyond_the_range_are_cut(images):
    canvas = panel([("large", torch.full((3, 400, 200), 3.0))], max_side=100)
    assert canvas.shape == (100 + HEADER_PX + 2, 96 + 4, 3)
    assert (canvas[HEADER_PX : HEADER_PX + 100, 2:52] == 255).all()
    dark = panel([("dark", torch.full((3, 400, 200), -3.0))], max_side=100)
    assert (dark[HEADER_PX : HEADER_PX + 100, 2:52] == 0).all()
    assert (dark[HEADER_PX : HEADER_PX + 100, 52:] == 255).all()


def test_png_files_hold_rgb(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    write_png(tmp_path / "new" / "red.png", image)
    assert np.array_equal(cv2.imread(str(tmp_path / "new" / "red.png"))[..., ::-1], image)


def test_the_first_tiles_appear_as_files_after_each_validation_that_is_shown(toy, tiles, trainer, tmp_path):
    trainer(ImagePanels(str(tmp_path / "images"), n_images=3, every_n_epochs=2)).fit(toy(), tiles)
    names = ["a_1", "a_2", "b_1"]  # two files named 1.png, in two folders
    files = sorted(path.relative_to(tmp_path / "images").as_posix() for path in tmp_path.glob("images/**/*.png"))
    assert files == [f"val/epoch{epoch}_{name}.png" for epoch in ("000", "002") for name in names]
    shown = cv2.imread(str(tmp_path / "images" / "val" / "epoch002_a_2.png"))[..., ::-1]
    tile = next(t for t in tiles.loader().dataset if t["name"] == "a/2.png")["ihc"]
    assert np.array_equal(shown[HEADER_PX : HEADER_PX + 16, 2:18], pixels(tile))
    assert np.array_equal(shown[HEADER_PX : HEADER_PX + 16, 102:118], pixels(-tile))


def test_a_test_shows_its_tiles_too(toy, tiles, trainer, tmp_path):
    runner = trainer(ImagePanels(str(tmp_path), n_images=1))
    for _ in range(2):
        runner.test(toy(), tiles, verbose=False)
    assert [path.name for path in (tmp_path / "test").iterdir()] == ["epoch000_b_1.png"]


def test_pictures_of_different_sizes_are_shown_at_one():
    canvas = panel([("small", torch.full((3, 50, 50), -1.0)), ("large", torch.full((3, 100, 100), 1.0))])
    assert canvas.shape == (100 + HEADER_PX + 2, 2 * 104, 3)
    assert (canvas[HEADER_PX : HEADER_PX + 100, 2:102] == 0).all()
