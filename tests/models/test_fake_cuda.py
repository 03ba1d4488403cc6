"""Forward pass, losses, metrics and prediction of every model on fake CUDA tensors, which need no GPU.

They have a shape and a device and no values, so a tensor that was forgotten on the CPU fails here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ihc2he.datainfo import DataInfo
from ihc2he.models.bundle import save_bundle
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.models.segmentation.unet.adapting import AdaptedUNet
from ihc2he.models.segmentation.unet.module import UNetSegmenter
from ihc2he.models.translation.cut.module import CUT
from ihc2he.models.translation.cyclegan.networks import ResnetGenerator
from ihc2he.models.translation.frozen import FrozenSegmenter
from ihc2he.models.translation.pix2pix.module import Pix2Pix
from ihc2he.nuclei.decoders.base import Decoder

CUDA = torch.device("cuda", 0)
CLASSES = ["round", "square"]
ADAM = {"_target_": "torch.optim.Adam"}
DECODERS = "ihc2he.nuclei.decoders"
ENCODERS = "ihc2he.models.segmentation.encoders"
PREACT = {"_target_": f"{ENCODERS}.PreactResNet", "width": 4, "units": [1, 1, 1, 1]}
LITE = {"_target_": f"{ENCODERS}.EfficientNetLite0", "weights": None, "plain": True}
WINDOWS = {"classes": CLASSES, "window": 64, "overlap": 16, "workers": 0}
SEGMENTERS = {
    "hovernet": lambda: HoverNetSegmenter(
        PREACT, ADAM, width=32, losses={"np_ce": 1, "np_tversky": 1, "hv_mse": 1, "hv_msge": 1, "nc_dice": 1}, **WINDOWS
    ),
    "centres": lambda: UNetSegmenter(
        PREACT, {"_target_": f"{DECODERS}.centres.CentresDecoder"}, ADAM, width=4, **WINDOWS
    ),
    "lite": lambda: UNetSegmenter(LITE, {"_target_": f"{DECODERS}.centres.CentresDecoder"}, ADAM, width=4, **WINDOWS),
    "lite_hover": lambda: UNetSegmenter(LITE, {"_target_": f"{DECODERS}.hover.HoverDecoder"}, ADAM, width=4, **WINDOWS),
}


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeTensorMode]:
    """Make all tensors fake; where a program asks for their values, these are 0.7."""

    def values(tensor: torch.Tensor) -> np.ndarray:
        return np.full(tuple(tensor.shape), 0.7, str(tensor.dtype).removeprefix("torch."))

    def numpy(tensor: torch.Tensor) -> np.ndarray:
        assert tensor.device.type == "cpu", "an array of a tensor that is still on the GPU"
        return values(tensor)

    answers = {"numpy": numpy, "tolist": lambda t: values(t).tolist(), "item": lambda t: values(t).item()}
    answers["__bool__"] = lambda tensor: True
    for name, answer in answers.items():
        own = getattr(torch.Tensor, name)

        def either(tensor, *args, own=own, answer=answer):
            return answer(tensor) if isinstance(tensor, FakeTensor) else own(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, either)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@contextmanager
def autocast(precision: str) -> Iterator[None]:
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
        yield


def moved(module: nn.Module) -> nn.Module:
    """Return a module with fake weights on the GPU in place of its own; `to` cannot replace real ones by fake ones."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
        if "_device" in vars(part):  # Lightning's note of where a module is
            part._device = CUDA
    return module


def on_gpu(*shape, **kind):
    return torch.empty(shape, device=CUDA, **kind)


def real(made):
    """Return what a function makes outside of the fake mode."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return made()


def attached(module):
    """Return a module with just enough of a Trainer."""
    data = SimpleNamespace(info=DataInfo(0.5, CLASSES))
    module._trainer = SimpleNamespace(datamodule=data, num_test_batches=[1], num_val_batches=[1], testing=True)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def test_a_tensor_that_was_forgotten_on_the_cpu_is_found(gpu):
    with pytest.raises(RuntimeError, match="cpu"):
        on_gpu(2, 3) + torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="cpu"):
        on_gpu(2, 3) + torch.from_numpy(np.ones((2, 3), np.float32))
    with pytest.raises(AssertionError, match="still on the GPU"):
        on_gpu(2, 3).numpy()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters(gpu, name, precision):
    module = attached(moved(real(SEGMENTERS[name])))
    targets = {"inst": on_gpu(2, 64, 64, dtype=torch.int32), "type": on_gpu(2, 64, 64, dtype=torch.int64)}
    targets |= {"centre": on_gpu(2, 64, 64), "hv": on_gpu(2, 2, 64, 64)}
    with autocast(precision):
        loss = module.training_step({"image": on_gpu(2, 3, 64, 64)} | targets, 0)
        assert (loss.device, loss.dtype, loss.requires_grad) == (CUDA, torch.float32, True)
        module.eval()
        maps = module.predict_maps(on_gpu(1, 3, 80, 60), tta=True)
        assert (maps.device, maps.shape[2:], maps.dtype) == (CUDA, (80, 60), torch.float32)
        assert module.decoder.votes(maps).device == CUDA
        module.members = [module.network]
        batch = {"image": on_gpu(1, 3, 80, 60), "name": ["a"], "group": ["b"]}
        batch |= {key: on_gpu(1, 80, 60, dtype=value.dtype) for key, value in list(targets.items())[:2]}
        (row,) = module.test_step(batch, 0)["rows"]
        assert row["name"] == "a"
        assert len(module.panels(batch)) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("adversarial", ["lsgan", "bce", "hinge"])
def test_the_cyclegan(gpu, small, adversarial, precision):
    metrics = ["psnr", "ssim", "ms_ssim", "ms_gmsd", "mdsi", "haarpsi", "bci_psnr", "bci_ssim"]
    made = real(lambda: small(adversarial=adversarial, metrics=metrics, ema_decay=0.9))
    module = attached(moved(made))
    batch = {"ihc": on_gpu(2, 3, 176, 176), "he": on_gpu(2, 3, 176, 176), "name": ["a", "b"], "group": ["0", "3+"]}
    batch["paired"] = on_gpu(2, dtype=torch.bool)
    with autocast(precision):
        losses, images = module.generator_losses(batch)
        judged = module.discriminator_losses(batch, {stain: image.detach() for stain, image in images.items()})
        assert {loss.device for loss in (losses | judged).values()} == {CUDA}
        module.eval()
        assert module.translate(batch["ihc"], "he").device == CUDA
        assert [row["name"] for row in module.test_step(batch, 0)["rows"]] == ["a", "b"]
        assert len(module.panels(batch)) == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_cyclegan_with_terms_that_keep_the_content(gpu, small, precision, tmp_path):
    def frozen():
        network, described = SEGMENTERS["lite"]().exports()["segmenter"]
        return FrozenSegmenter(str(save_bundle(network, tmp_path / "lite", {**described, "mpp": 0.25})), 0.5)

    local = {"_target_": "ihc2he.models.translation.local.LocalUNet", "width": 4, "depth": 2}
    terms = {"lambda_nuclear": 5.0, "nuclear_dab": 1.0, "lambda_segmentation": 1.0, "segmenter": "lite"}
    module = attached(moved(real(lambda: small(generator=local, **terms))))
    module.frozen = real(frozen)
    moved(module.frozen.network)
    batch = {"ihc": on_gpu(2, 3, 64, 64), "he": on_gpu(2, 3, 64, 64), "name": ["a", "b"], "group": ["0", "3+"]}
    batch |= {"paired": on_gpu(2, dtype=torch.bool), "inst": on_gpu(2, 64, 64, dtype=torch.int32)}
    with autocast(precision):
        losses, _ = module.generator_losses(batch)
        assert {(loss.device, loss.dtype) for loss in losses.values()} == {(CUDA, torch.float32)}
        assert len(losses) == 6 + 4
        module.eval()
        rows = module.test_step(batch | {"mpp": on_gpu(2)}, 0)["rows"]
    assert all("he/lost" in row for row in rows)


NETWORKS = "ihc2he.models.translation.cyclegan.networks"
GENERATOR = {"_target_": f"{NETWORKS}.ResnetGenerator", "width": 4, "n_blocks": 1}
JUDGE = {"_target_": f"{NETWORKS}.PatchDiscriminator", "width": 4}
ONE_WAY = {
    "cut": lambda: CUT(GENERATOR, JUDGE, ADAM, layers=[0, 4, 10]),
    "fastcut": lambda: CUT(GENERATOR, JUDGE, ADAM, layers=[0, 4, 10], identity=False, flip_equivariance=True),
    "pix2pix": lambda: Pix2Pix(
        GENERATOR, {**JUDGE, "channels": 6}, ADAM, layers=[0, 4, 10], lambda_pyramid=1, lambda_asp=1, lambda_nce=1
    ),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ONE_WAY)
def test_translations_of_one_direction(gpu, name, precision):
    module = attached(moved(real(ONE_WAY[name])))
    module._trainer.current_epoch = 0
    batch = {"ihc": on_gpu(2, 3, 64, 64), "he": on_gpu(2, 3, 64, 64)}
    with autocast(precision):
        losses, made = module.generator_losses(batch)
        losses |= module.discriminator_losses(batch, {stain: image.detach() for stain, image in made.items()})
    assert {(loss.device, loss.dtype) for loss in losses.values()} == {(CUDA, torch.float32)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_mean_teacher(gpu, precision):
    views = {"none": {"_target_": f"{TRANSLATORS}.Identity"}}
    views["recolour"] = {"_target_": f"{TRANSLATORS}.Recolour", **RECOLOUR}
    decoder = {"_target_": f"{DECODERS}.centres.CentresDecoder"}
    settings = {"width": 4, "translators": views, "teacher_views": [*views], **WINDOWS}
    module = attached(moved(real(lambda: AdaptedUNet(PREACT, decoder, ADAM, **settings))))
    module._trainer.global_step = 1
    batch = {name: on_gpu(2, 3, 64, 64) for name in ("image", "weak", "strong")} | {"centre": on_gpu(2, 64, 64)}
    batch |= {"inst": on_gpu(2, 64, 64, dtype=torch.int32), "type": on_gpu(2, 64, 64, dtype=torch.int64)}
    with autocast(precision):
        loss = module.training_step(batch, 0)
    assert (loss.device, loss.dtype) == (CUDA, torch.float32)
    module._follow()


@pytest.fixture
def bundles(tmp_path):
    """Return a bundle of a generator and one of each segmenter, by name."""
    node = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}
    stains = {"role": "translator", "stain_in": "IHC", "stain_out": "H&E"}
    info = {"module": node, **stains, "mpp": 0.46, "value_range": [-1.0, 1.0]}
    made = {"cyclegan": str(save_bundle(ResnetGenerator(width=4, n_blocks=1), tmp_path / "cyclegan", info))}
    for name, build in SEGMENTERS.items():
        network, described = build().exports()["segmenter"]
        made[name] = str(save_bundle(network, tmp_path / name, {**described, "mpp": 0.5}))
    return made


TRANSLATORS = "ihc2he.models.pipeline.translators"
RECOLOUR = {"h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.2, "eosin_gain": 1.0}
LAB = {"target": None, "lab_mean": [69.0, 19.0, -14.0], "lab_std": [18.0, 8.0, 8.0]}


PAIRS = [(name, "classical") for name in ("cyclegan", "recolour", "reinhard", "macenko")]
PAIRS += [("none", name) for name in SEGMENTERS]


@pytest.mark.parametrize(("translator", "segmenter"), PAIRS)
def test_the_pipeline(bundles, gpu, translator, segmenter):
    if translator in ("reinhard", "macenko"):
        pytest.importorskip("torchstain", reason='pip install "ihc2he[stain]"')
    translators = {
        "cyclegan": {"_target_": f"{TRANSLATORS}.LearnedTranslator", "weights": [bundles["cyclegan"]] * 2},
        "none": {"_target_": f"{TRANSLATORS}.Identity"},
        "recolour": {"_target_": f"{TRANSLATORS}.Recolour", **RECOLOUR},
        "reinhard": {"_target_": f"{TRANSLATORS}.Reinhard", **LAB},
        "macenko": {"_target_": f"{TRANSLATORS}.Macenko"},
    }
    pipeline = "ihc2he.models.pipeline.segmenters"
    learned = {"_target_": f"{pipeline}.Learned", "weights": [bundles.get(segmenter)] * 2, "window": 64, "overlap": 16}
    segmenters = dict.fromkeys(SEGMENTERS, learned) | {"classical": {"_target_": f"{pipeline}.Classical"}}
    use = {"translators": [translator], "segmenters": [segmenter]}
    module = moved(real(lambda: Pipeline(translators, segmenters, use, tta=True, block=128, workers=0))).eval()
    module._trainer = SimpleNamespace(num_predict_batches=[1])
    image = np.random.default_rng(0).integers(0, 255, (130, 50, 3), np.uint8)
    batch = {"name": ["a"], "path": ["a.png"], "image": [image], "mpp": [0.45], "error": [None]}
    with autocast("bf16-mixed"):
        (prediction,) = module.predict_step(batch, 0)
    assert prediction.nuclei.inst_hw.shape == (130, 50)
    assert (prediction.he is None) == (translator == "none")


def test_every_decoder_is_tried_here():
    import ihc2he.nuclei.decoders.centres
    import ihc2he.nuclei.decoders.hover  # noqa: F401

    tried = {type(build().decoder) for build in SEGMENTERS.values()}
    assert {kind for kind in Decoder.__subclasses__() if kind.__module__.startswith(DECODERS)} == tried
