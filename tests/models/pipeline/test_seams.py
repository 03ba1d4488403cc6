"""Translation of large images in blocks, and of slides in windows: the same as of the whole, without seams."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from ihc2he.build import build
from ihc2he.callbacks import slidefiles
from ihc2he.callbacks.predictions import PredictionWriter
from ihc2he.callbacks.slides import SlideWriter, summary
from ihc2he.data.plans import read_plan
from ihc2he.data.slides import SlidesDataModule
from ihc2he.data.tiles import TilesDataModule
from ihc2he.errors import ConfigError
from ihc2he.images.decoding import read_image
from ihc2he.images.source import ArraySource
from ihc2he.metrics.seams import Seams
from ihc2he.models.bundle import save_bundle
from ihc2he.models.pipeline.blocks import OpenImage
from ihc2he.models.pipeline.fusing import Fused
from ihc2he.models.pipeline.inference import translate
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.sampling import tissue_windows
from ihc2he.models.pipeline.segmenters import Classical
from ihc2he.models.pipeline.slides import SlidePipeline
from ihc2he.models.pipeline.translators import Identity, LearnedTranslator
from ihc2he.models.pixels import pixels
from ihc2he.simulate.scene import cut, draw_block
from ihc2he.simulate.tile import draw_case, photograph_ihc
from ihc2he.simulate.tissue import BREAST, Marker

NETWORKS = "ihc2he.models.translation"
RESNET = {"_target_": f"{NETWORKS}.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1, "upsample": "resize"}
LOCAL = {"_target_": f"{NETWORKS}.local.LocalUNet", "width": 6, "depth": 2}
INFO = {"role": "translator", "stain_in": "IHC", "stain_out": "H&E", "value_range": [-1.0, 1.0], "mpp": 0.5}
REALDATA = os.environ.get("IHC2HE_REALDATA")
SIZE, BLOCK = 500, 128  # px; blocks begin about 64 px apart, as far as they overlap


@pytest.fixture(scope="module")
def tissue():
    """A tile of which a part is glass, so that statistics differ from place to place."""
    case = draw_case(replace(BREAST, outside=0.3), Marker("nucleus"), 7, 0)
    rng = np.random.default_rng(7)
    return photograph_ihc(cut(draw_block(case.tissue, SIZE, 0.5, rng), rng), case, rng)


@pytest.fixture
def generator(tmp_path):
    """Return `generator(node)`, the bundle of one with random weights, whose image has contrast."""

    def write(node, name="g", seed=0):
        torch.manual_seed(seed)
        network = build(node, nn.Module)
        with torch.no_grad():
            [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1].weight.mul_(3)
        return str(save_bundle(network.eval(), tmp_path / name, {"module": node, **INFO}))

    return write


@pytest.fixture
def predicted(trainer, tmp_path, tissue):
    """Return `predicted(translator)`: the H&E that a prediction in blocks writes, and the blocks."""

    def go(translator):
        tifffile.imwrite(tmp_path / "a.tif", tissue, photometric="rgb", tile=(64, 64), compression="zlib")
        use = {"translators": ["cyclegan"], "segmenters": ["classical"]}
        module = Pipeline({"cyclegan": translator}, {"classical": Classical()}, use, workers=0, block=BLOCK)
        data = TilesDataModule(path=str(tmp_path / "a.tif"), mpp=0.5, num_workers=0)
        trainer(callbacks=[PredictionWriter(str(tmp_path / "out"))]).predict(module, data, return_predictions=False)
        return read_image(tmp_path / "out" / "he" / "a.png"), module.divide(SIZE, SIZE, 0.5)

    return go


@pytest.fixture
def slide_of(trainer, tmp_path, monkeypatch):
    """Return `slide_of(translator, path)`: the H&E of a slide before it is compressed, its plan and its seams."""
    made = []
    monkeypatch.setattr(slidefiles, "write_pyramid", lambda path, shape, mpp, strips: made.append(np.concatenate([*strips])))  # fmt: skip  # noqa: E501

    def go(translator, path, mpp=0.5, block=BLOCK):
        out = tmp_path / "out"
        use = {"translators": ["cyclegan"], "segmenters": ["classical"]}
        module = SlidePipeline({"cyclegan": translator}, {"classical": Classical()}, use, workers=0, block=block)
        data = SlidesDataModule(path=str(path), out=str(out), mpp=mpp, num_workers=0)
        writer = SlideWriter(str(out), workers=0, write=["he"])
        trainer(callbacks=[writer]).predict(module, data, return_predictions=False)
        result = json.loads((out / path.stem / "slide.json").read_text())
        assert {row["seams"] for row in summary(out)[:-1]} == {f"{result['seams']:.3f}"}
        return made[-1], read_plan(out / path.stem), result["seams"]

    return go


@torch.no_grad()
def made(translator, image, state=None):
    x_bchw = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return pixels(translate(translator, x_bchw, 0.5, 0, [state]))[0]


def side_by_side(translator, image, side=BLOCK):
    """Translate without overlap."""
    rows = [
        np.concatenate([made(translator, image[y : y + side, x : x + side]) for x in range(0, SIZE, side)], axis=1)
        for y in range(0, SIZE, side)
    ]
    return np.concatenate(rows)


def seams(image, rows, columns):
    found = Seams(rows, columns)
    found.add(image)
    return found.ratio


def at_cores(image, blocks):
    rows, columns = ({block.core_y[0] for block in blocks}, {block.core_x[0] for block in blocks})
    return seams(image, sorted(rows - {0}), sorted(columns - {0}))


def test_a_generator_with_instance_norm_has_no_seams(generator, predicted, tissue):
    translator = LearnedTranslator(generator(RESNET))
    lines = range(BLOCK, SIZE, BLOCK)
    assert seams(side_by_side(translator, tissue), lines, lines) > 1.5
    he, blocks = predicted(translator)
    assert len(blocks) > 9
    assert at_cores(he, blocks) < 1.05
    whole = made(translator, tissue, translator.prepare_divided(ArraySource(tissue, 0.5)))
    assert np.abs(he - whole.astype(int)).mean() < 0.5


def test_with_statistics_of_each_window_blocks_differ_from_the_whole(generator, predicted, tissue):
    translator = LearnedTranslator(generator(RESNET), statistics="tile")
    assert translator.prepare_divided(ArraySource(tissue, 0.5)) is None
    he, _ = predicted(translator)
    assert np.abs(he - made(translator, tissue).astype(int)).mean() > 5


def test_a_local_generator_gives_exactly_the_whole(generator, predicted, tissue):
    translator = LearnedTranslator(generator(LOCAL))
    lines = range(BLOCK, SIZE, BLOCK)
    assert seams(side_by_side(translator, tissue), lines, lines) > 1.2
    he, blocks = predicted(translator)
    assert len(blocks) > 9
    assert at_cores(he, blocks) < 1.05
    assert np.abs(he - made(translator, tissue).astype(int)).max() <= 1  # rounding


def test_blocks_of_a_local_generator_overlap_by_what_it_sees(generator):
    use = {"translators": ["cyclegan"], "segmenters": ["classical"]}
    deep = LearnedTranslator(generator(LOCAL | {"depth": 4}))  # sees 123 px
    module = Pipeline({"cyclegan": deep}, {"classical": Classical()}, use, workers=0)
    blocks = module.divide(3800, 800, 0.5)
    assert all(block.rows.start % 16 == 0 for block in blocks)
    for one, two in pairwise(blocks):
        assert one.rows.stop - one.core_y[1] >= 123
        assert two.core_y[0] - two.rows.start >= 123
    first = module.divide(3800, 800, 0.46)[0]  # its pixels are not those of the image
    assert first.rows.stop - first.core_y[1] < 123


@pytest.mark.parametrize("node", [RESNET, LOCAL], ids=["resnet", "local"])
def test_an_image_of_one_block_is_translated_as_ever(node, generator, tissue):
    translator = LearnedTranslator(generator(node))
    tile = {"name": "a", "mpp": 0.5, "image": tissue}

    def divide(count):
        return lambda *_: [SimpleNamespace(rows=slice(0, SIZE), columns=slice(0, SIZE))] * count

    assert OpenImage(tile, divide(1), {"cyclegan": translator}, None).states == {"cyclegan": None}
    state = OpenImage(tile, divide(2), {"cyclegan": translator}, None).states["cyclegan"]
    assert (state is None) == (node is LOCAL)


def test_each_image_of_a_batch_and_each_member_has_its_own_statistics(generator, tissue):
    ensemble = LearnedTranslator([generator(RESNET, "a", 0), generator(RESNET, "b", 1)])
    images = [tissue[y : y + 96, x : x + 96] for y, x in ((40, 300), (380, 120))]
    assert min(image.std() for image in images) > 20
    states = [ensemble.prepare_divided(ArraySource(image, 0.5)) for image in images]
    x_bchw = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in images])
    for member in range(2):
        together = ensemble(x_bchw, member, states)
        for i in range(2):
            alone = ensemble(x_bchw[i : i + 1], member, states[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone)
            # A window that is the whole image has its statistics.
            torch.testing.assert_close(alone, ensemble(x_bchw[i : i + 1], member), atol=1e-4, rtol=0)
    fused = Fused({"none": Identity(), "cyclegan": ensemble})
    state = fused.prepare_divided(ArraySource(images[0], 0.5))
    assert state["none"] is None
    assert len(state["cyclegan"]) == 2


def test_windows_for_statistics_have_tissue_and_come_from_all_over():
    image = np.full((700, 900, 3), 245, np.uint8)
    image[100:600, 300:] = (150, 110, 160)
    windows = tissue_windows(ArraySource(image, 0.5), 100, 8)
    assert windows.shape == (8, 100, 100, 3)
    assert (windows[..., 1] < 200).mean() > 0.8
    assert len(tissue_windows(ArraySource(image[:50, :70], 0.5), 100, 8)) == 1  # glass alone
    assert tissue_windows(ArraySource(image[:50], 0.5), 100, 8).shape == (8, 50, 100, 3)


def test_unknown_statistics_are_refused(generator):
    with pytest.raises(ConfigError, match=r"model\.translators\.cut\.statistics=images: .* Did you mean 'image'\?"):
        LearnedTranslator(generator(RESNET), name="cut", statistics="images")


@pytest.mark.parametrize("node", [RESNET, LOCAL, LOCAL | {"depth": 4}], ids=["resnet", "local", "far-sighted"])
def test_windows_of_a_slide_have_no_seams_and_those_of_a_local_generator_are_the_whole(
    node, generator, slide_of, tissue, tmp_path
):
    tifffile.imwrite(tmp_path / "a.tif", tissue, photometric="rgb", tile=(64, 64), compression="zlib")
    translator = LearnedTranslator(generator(node))
    he, plan, ratio = slide_of(translator, tmp_path / "a.tif")
    assert len(plan.windows) >= 4
    assert plan.halo == (128 if node.get("depth") == 4 else 64)
    assert 0.9 < ratio < 1.05
    inside = np.zeros(he.shape[:2], bool)
    for block in plan.blocks.values():
        inside[slice(*block.core_y), slice(*block.core_x)] = True
    assert inside.mean() > 0.5
    assert (he[~inside] == np.array(plan.white, np.uint8)).all()
    state = translator.prepare_divided(ArraySource(tissue, 0.5))
    away = np.abs(he - made(translator, tissue, state).astype(int))[inside]
    assert away.mean() < 0.5 if node is RESNET else away.max() <= 1  # rounding


@pytest.mark.slow
@pytest.mark.skipif(not REALDATA, reason="IHC2HE_REALDATA names no folder of real tiles")
@pytest.mark.parametrize("node", [RESNET, LOCAL], ids=["resnet", "local"])
def test_windows_of_a_real_slide_have_no_seams(node, generator, slide_of):
    pytest.importorskip("openslide")
    path = Path(REALDATA, "other", "cmu-1-small-region.svs")
    _, plan, ratio = slide_of(LearnedTranslator(generator(node)), path, mpp=None, block=256)
    assert len(plan.windows) > 200
    assert 0.9 < ratio < 1.05
