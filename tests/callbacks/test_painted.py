from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ihc2he.callbacks.painted import PaintedPicture
from ihc2he.callbacks.panels import HEADER_PX
from ihc2he.data.painting import Painter
from ihc2he.images.decoding import read_image
from ihc2he.images.writing import write_png
from ihc2he.stain.looks import draw_look
from ihc2he.stain.painting import paint_as

SIDE = 64
CELL = SIDE + HEADER_PX + 2, 96 + 4


@pytest.fixture
def crops():
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inst = np.zeros((SIDE, SIDE), np.int32)
    for k in range(4):
        inst[(rows - 16 - 32 * (k // 2)) ** 2 + (columns - 16 - 32 * (k % 2)) ** 2 < 60] = k + 1
    image = np.where((inst > 0)[..., None], (110, 70, 150), (225, 170, 205)).astype(np.uint8)
    return [{"image": torch.from_numpy(image).permute(2, 0, 1) / 255, "inst": torch.from_numpy(inst)}] * 5


def shown(painter, crops, folder, **options):
    data = SimpleNamespace(painter=painter, train_crops=lambda augmented: crops)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True)
    PaintedPicture(str(folder), side=SIDE, **options).on_fit_start(trainer, None)


def cell(picture, row, column):
    top, left = row * CELL[0] + HEADER_PX, column * CELL[1] + 2
    return picture[top : top + SIDE, left : left + SIDE]


def test_rows_have_the_crop_and_its_paintings(crops, tmp_path):
    painter = Painter(mpp=0.25, share=0.1)
    shown(painter, crops, tmp_path, n_rows=2, n_painted=3)
    picture = read_image(tmp_path / "painted.png")
    assert picture.shape == (2 * CELL[0], 4 * CELL[1], 3)
    image = (crops[0]["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert (cell(picture, 0, 0) == image).all()
    expected = painter.paint(image, crops[0]["inst"].numpy(), None, np.random.default_rng((0, 0)))
    assert (cell(picture, 0, 1) == expected).all()


def test_real_tiles_are_those_of_the_reference_at_the_scale_of_the_crop(crops, tmp_path):
    image = (crops[0]["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    look = draw_look(Painter(mpp=0.25).ranges, np.random.default_rng(0))
    real = paint_as(look, image, crops[0]["inst"].numpy(), 0.25, np.random.default_rng(0))
    write_png(tmp_path / "ihc" / "a.png", real[:, :40])
    painter = Painter(
        mpp=0.25, share=0.1, reference=str(tmp_path / "ihc"), reference_mpp=0.25, store=str(tmp_path / "store")
    )
    painter.prepare()
    shown(painter, crops, tmp_path, n_rows=1, n_painted=1, n_real=2)
    picture = read_image(tmp_path / "painted.png")
    assert picture.shape == (CELL[0], 4 * CELL[1], 3)
    assert (cell(picture, 0, 2)[:, :40] == real[:, :40]).all()
    assert (cell(picture, 0, 2)[:, 40:] == 255).all()
    assert (cell(picture, 0, 3) == 255).all()


def test_without_painting_there_is_no_picture(crops, tmp_path):
    shown(None, crops, tmp_path)
    assert not list(tmp_path.iterdir())
