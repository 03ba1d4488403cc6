"""The mean teacher: what it is, what it teaches, and that without it a training is as before."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.callbacks.averaging import AveragedWeights
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError
from ihc2he.losses.consistency import consistency_losses, ramp
from ihc2he.models.segmentation.loading import load_segmenter
from ihc2he.models.segmentation.unet.adapting import AdaptedUNet
from ihc2he.models.segmentation.unet.module import UNetSegmenter

TRANSLATORS = {
    "none": {"_target_": "ihc2he.models.pipeline.translators.Identity"},
    "recolour": {
        "_target_": "ihc2he.models.pipeline.translators.Recolour",
        "h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.22, "eosin_gain": 1.0,
    },
}  # fmt: skip
SMALL = {
    "encoder": {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]},
    "decoder": {"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3},
    "width": 4, "window": 32, "overlap": 8, "workers": 0,
}  # fmt: skip


class Crops(LightningDataModule):
    """Eight crops of noise with a bright nucleus, beside two views of noise."""

    info = DataInfo(0.5, [])

    def __init__(self, unlabelled=True):
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        nucleus = torch.zeros(16, 16)
        nucleus[4:9, 5:10] = 1
        self.crops = []
        for _ in range(8):
            image, weak = torch.rand(2, 3, 16, 16, generator=draws)
            crop = {"image": (image + nucleus).clamp(0, 1), "inst": nucleus.int(), "centre": nucleus}
            views = {"weak": weak, "strong": (weak * 0.8).clamp(0, 1)} if unlabelled else {}
            self.crops.append(crop | views)

    def train_dataloader(self):
        return DataLoader(self.crops, batch_size=4)


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def adapted(**changes):
    torch.manual_seed(0)
    return AdaptedUNet(**({**SMALL, "translators": TRANSLATORS, "ramp_steps": 3} | changes))


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_without_weight_it_is_the_training_without_ihc(fit):
    torch.manual_seed(0)
    plain, same, other = UNetSegmenter(**SMALL), adapted(weight_unlabelled=0), adapted()
    fit(plain, Crops(unlabelled=False), max_epochs=2)
    fit(same, Crops(), max_epochs=2)
    fit(other, Crops(), max_epochs=2)
    assert all(
        torch.equal(value, same.network.state_dict()[name]) for name, value in plain.network.state_dict().items()
    )
    assert not torch.equal(plain.network.heads["mask"].weight, other.network.heads["mask"].weight)


def test_the_teacher_starts_as_the_student_and_follows_it_step_by_step(fit):
    class Follow(Callback):
        def on_train_start(self, trainer, pl_module):
            self.expected = weights(pl_module.network)
            assert all(torch.equal(value, self.expected[k]) for k, value in pl_module.teacher.state_dict().items())

        def on_train_batch_end(self, trainer, pl_module, *args):
            for name, value in pl_module.network.state_dict().items():
                before = self.expected[name]
                self.expected[name] = 0.75 * before + 0.25 * value if value.is_floating_point() else value.clone()
            torch.testing.assert_close(weights(pl_module.teacher), self.expected)

    module, follow = adapted(teacher_decay=0.75), Follow()
    fit(module, Crops(), follow, max_epochs=2)
    assert not torch.equal(module.teacher.heads["mask"].weight, module.network.heads["mask"].weight)
    assert all(p.grad is None for p in module.teacher.parameters())
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.network.parameters()}


def test_the_loss_is_that_of_the_labels_plus_that_of_the_teacher(fit):
    module = adapted(teacher_views=["none"], weight_unlabelled=2.0)
    logged = {}
    module.log = lambda key, value, **_: logged.update({key: value})
    module.log_dict = lambda values, **_: logged.update(values)
    batch = next(iter(Crops().train_dataloader()))
    module.train()
    maps = module.network(torch.cat([batch["image"], batch["strong"]]))
    labelled = module.terms({k: m[:4] for k, m in maps.items()}, batch)
    teacher = module.decoder.join(module.teacher.eval()(batch["weak"]))
    expected = consistency_losses({k: m[4:] for k, m in maps.items()}, teacher, 0.9)
    loss = module.training_step(batch, 0)
    total = sum(labelled.values()) + 2 * ramp(0, 3) * sum(expected.values())
    torch.testing.assert_close(loss, total)
    assert logged.keys() == {
        "train/loss", "train/clear_share", *(f"train/loss_{k}" for k in labelled),
        *(f"train/loss_unlabelled_{k}" for k in expected),
    }  # fmt: skip


def test_the_teacher_averages_its_views():
    one, other, both = (adapted(teacher_views=v) for v in (["none"], ["recolour"], ["none", "recolour"]))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(both.teach(x), (one.teach(x) + other.teach(x)) / 2)
    assert not torch.allclose(one.teach(x), other.teach(x))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(fit, tmp_path):
    ends = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for i, step in enumerate(stops):
            ckpt = str(tmp_path / name / "last.ckpt") if i else None
            last = LastCheckpoint(str(tmp_path / name))
            try:
                fit(adapted(), Crops(), Stop(step), last, AveragedWeights(0.8), max_epochs=2, ckpt_path=ckpt)
            except (KeyboardInterrupt, SystemExit):
                assert step is not None
        ends.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True))
    for key in ("state_dict", "current_model_state"):
        assert any(name.startswith("teacher.") for name in ends[0][key])
        assert ends[0][key].keys() == ends[1][key].keys()
        assert all(torch.equal(value, ends[1][key][name]) for name, value in ends[0][key].items()), key


def test_a_checkpoint_is_read_as_the_student(fit, tmp_path):
    module = adapted()
    fit(module, Crops(), LastCheckpoint(str(tmp_path)), max_epochs=1)
    loaded = load_segmenter(str(tmp_path / "last.ckpt")).network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.network.state_dict().items())
    assert module.exports()["segmenter"].info["terms"] == {"unlabelled": 1.0}


def test_batches_without_ihc_are_refused(fit):
    with pytest.raises(ConfigError, match=r"image, inst, centre, and no unlabelled IHC. Pass data=adapting."):
        fit(adapted(), Crops(unlabelled=False), max_epochs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_views": ["recolor"]}, r"no translator 'recolor'. Did you mean 'recolour'\?"),
        ({"teacher_views": []}, r"model.teacher_views=\[\]: expected one name or more"),
        ({"confidence": 0.5}, r"model.confidence=0.5: expected above 0.5 and up to 1"),
        ({"teacher_decay": 1.1}, r"model.teacher_decay=1.1: expected from 0 to 1"),
        ({"decoder": {"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder"}}, r"CentresDecoder"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        adapted(**changes)
