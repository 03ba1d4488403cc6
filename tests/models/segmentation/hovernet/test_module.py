"""The LightningModule: learning, maps in windows and views, evaluation, ensembles, bundles."""

import copy
import csv
import logging
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
import torch

from ihc2he.callbacks.bundles import Bundles
from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.callbacks.panels import ImagePanels
from ihc2he.callbacks.results import Results
from ihc2he.errors import ConfigError, DataError
from ihc2he.losses.hover import hover_losses
from ihc2he.models.bundle import load_bundle, save_bundle
from ihc2he.models.segmentation.encoders import PreactResNet
from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.models.segmentation.hovernet.networks import centre_crop
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.tiling.augmentation import turned, turned_maps


@pytest.fixture
def batch(data):
    return next(iter(data().test_dataloader()))


def test_it_learns_to_find_and_to_type(segmenter, fit, data):
    module = segmenter()
    runner = fit(module, data(n=8, batch_size=4), max_epochs=20)
    runner.test(module, datamodule=data(n=8), verbose=False)
    values = {key: float(value) for key, value in runner.callback_metrics.items()}
    assert values["test/bpq"] > 0.4
    assert values["test/mpq"] > 0.4
    assert values["test/f1/round"] > 0.5
    assert values["test/f1/square"] > 0.5
    assert values["test/bpq"] == pytest.approx((values["test/bpq/Colon"] + values["test/bpq/Liver"]) / 2, abs=1e-6)


@pytest.mark.parametrize("mode", ["same", "fast"])
def test_the_loss_of_a_step_is_that_of_the_cropped_targets(segmenter, data, mode):
    module = segmenter(mode=mode, window=128, losses={"np_ce": 1.0, "hv_msge": 3.0}, msge_axis="cross")
    batch = next(iter(data(side=128).train_dataloader()))
    reference = copy.deepcopy(module.network)
    side = 128 - 2 * reference.margin
    targets = {key: centre_crop(batch[key], side, side) for key in ("inst", "hv", "type")}
    expected = sum(hover_losses(reference(batch["image"]), targets, module.losses, "cross").values())
    logged = {}
    module.log = lambda name, value, **kwargs: logged.update({name: value})
    module.log_dict = lambda values, **kwargs: logged.update(values)
    loss = module.training_step(batch, 0)
    torch.testing.assert_close(loss, expected)
    assert logged.keys() == {"train/loss", "train/loss_np_ce", "train/loss_hv_msge"}


def test_batches_without_types_are_no_training_of_types(segmenter, data):
    batch = next(iter(data().train_dataloader()))
    del batch["type"]
    with pytest.raises(ConfigError, match="the training batches hold no types of nuclei"):
        segmenter().training_step(batch, 0)


def test_the_encoder_has_a_learning_rate_of_its_own(segmenter):
    module = segmenter(lr_encoder=1e-5, optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01})
    optimizer = module.configure_optimizers()
    rest, encoder = optimizer.param_groups
    assert (type(optimizer).__name__, rest["lr"], encoder["lr"]) == ("AdamW", 1e-3, 1e-5)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in module.encoder.parameters()}
    assert len(rest["params"]) + len(encoder["params"]) == len(list(module.parameters()))


def test_half_precision_trains_and_tests(segmenter, fit, data):
    module = segmenter()
    runner = fit(module, data(), max_epochs=1, precision="bf16-mixed")
    runner.test(module, datamodule=data(), verbose=False)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())
    assert "test/bpq" in runner.callback_metrics


# ---------------------------------------------------------------------- maps


def test_maps_hold_probabilities(segmenter, batch):
    maps = segmenter().eval().predict_maps(batch["image"])
    assert maps.shape == (2, 6, 64, 64)
    assert maps.dtype == torch.float32
    assert maps[:, 0].min() >= 0
    assert maps[:, 0].max() <= 1
    torch.testing.assert_close(maps[:, 3:].sum(1), torch.ones(2, 64, 64))


def test_a_tile_that_fits_the_window_is_seen_whole(segmenter, batch):
    module = segmenter().eval()
    with torch.no_grad():
        assert torch.equal(module.predict_maps(batch["image"]), HoverDecoder().join(module.network(batch["image"])))


@pytest.mark.parametrize(("mode", "window"), [("same", 32), ("fast", 128)])
def test_larger_tiles_are_covered_by_windows(segmenter, batch, mode, window):
    module = segmenter(mode=mode, window=window, overlap=8).eval()
    x = batch["image"].repeat(1, 1, 2, 1)[:, :, :111]
    sizes = []
    module.network.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    assert module.predict_maps(x).shape == (2, 6, 111, 64)
    assert set(sizes) == {(window, window)}


def test_a_large_tile_gives_the_same_alone_and_in_a_batch(segmenter):
    module = segmenter(classes=[], window=256, overlap=8).eval()
    x = torch.rand(2, 3, 700, 1000)
    together = module.predict_maps(x)
    assert together.shape == (2, 3, 700, 1000)
    torch.testing.assert_close(module.predict_maps(x[1:]), together[1:], rtol=0, atol=1e-5)


def test_averaging_over_views_follows_turns(segmenter, batch):
    module = segmenter(classes=[]).eval()
    maps = module.predict_maps(batch["image"], tta=True)
    for view in (1, 6):
        again = module.predict_maps(turned(batch["image"], view), tta=True)
        torch.testing.assert_close(again, turned_maps(maps, view, (1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{"overlap": 64}, {"mode": "fast", "window": 96, "overlap": 16}])
def test_an_overlap_that_does_not_fit_is_named(segmenter, changes):
    with pytest.raises(ConfigError, match=r"model.overlap=.*: expected 0 or more and less than the"):
        segmenter(**changes)


@pytest.mark.parametrize("losses", [{}, {"np_ce": 0.0}, {"nc_ce": 1.0}])
def test_losses_that_leave_nothing_to_train_are_named(segmenter, losses):
    with pytest.raises(ConfigError, match=r"model.losses=.*: nothing is left to train"):
        segmenter(classes=[], losses=losses)


# ---------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 1])
def test_every_tile_gets_a_row_however_slow_the_workers(segmenter, trainer, data, tmp_path, workers):
    module = segmenter(workers=workers)
    runner = trainer(callbacks=[Results(str(tmp_path)), ImagePanels(str(tmp_path / "images"), n_images=2)])
    runner.test(module, datamodule=data(n=5), verbose=False)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["name"] for row in rows] == [f"{i:03d}.png" for i in range(5)]
    assert {"bpq", "mpq", "pq/round", "f1/square", "aji", "n_true", "n_found"} <= rows[0].keys()
    table = {(row["metric"], row["group"]): row for row in csv.DictReader((tmp_path / "test.csv").open())}
    assert {("bpq", ""), ("bpq", "Colon"), ("mpq_dataset", ""), ("pq/round", ""), ("f1/square", "")} <= table.keys()
    assert all(row["protocol"] for row in table.values())
    assert len(list((tmp_path / "images" / "test").glob("*.png"))) == 2
    assert module.handover.pool is None


def test_maps_that_wait_for_slow_workers_do_not_pile_up(segmenter, trainer, data, monkeypatch, tmp_path):
    class Lazy(Executor):  # works only when its result is asked for
        def submit(self, fn, /, *args, **kwargs):
            promise = Future()
            promise.done = lambda: False
            promise.result = lambda timeout=None: fn(*args, **kwargs)
            return promise

    waiting = []
    module = segmenter()
    evaluate = module._evaluate

    def watched(*args, **kwargs):
        rows = evaluate(*args, **kwargs)
        waiting.append(len(module.handover))
        return rows

    monkeypatch.setattr(module, "_evaluate", watched)
    monkeypatch.setattr("ihc2he.models.handover.ThreadPoolExecutor", lambda workers: Lazy())
    each = 64 * 64 * (4 * 4 + 3 + 4)  # bytes of the four maps that travel, of the image and of the instances
    monkeypatch.setattr(module.handover, "most", 3 * each)
    trainer(callbacks=[Results(str(tmp_path))]).test(module, datamodule=data(n=9), verbose=False)
    assert waiting == [2, 3, 3, 3, 0]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 10


def test_workers_and_this_process_find_the_same(segmenter, trainer, data):
    values = []
    for workers in (0, 1):
        module = segmenter(workers=workers)
        runner = trainer()
        runner.test(module, datamodule=data(n=3), verbose=False)
        values.append({key: float(value) for key, value in runner.callback_metrics.items()})
    assert values[0].keys() == values[1].keys()
    assert all(a == b or (a != a and b != b) for a, b in zip(values[0].values(), values[1].values(), strict=True))


def test_a_model_without_types_ignores_those_of_the_data(segmenter, trainer, data):
    module = segmenter(classes=None)
    runner = trainer()
    runner.test(module, datamodule=data(), verbose=False)
    assert "test/bpq" in runner.callback_metrics
    assert not any("mpq" in key or "type" in key or "round" in key for key in runner.callback_metrics)


def test_classes_other_than_the_data_s_are_named(segmenter, trainer, data):
    with pytest.raises(
        ConfigError, match=r"model.classes=\['square', 'round'\] are not those of the data, \['round', 's"
    ):
        trainer().test(segmenter(classes=["square", "round"]), datamodule=data(), verbose=False)


def test_the_test_ends_with_the_row_of_a_paper(segmenter, trainer, data, caplog):
    with caplog.at_level(logging.INFO, logger="ihc2he"):
        trainer().test(segmenter(), datamodule=data(), verbose=False)
    assert "| mPQ | bPQ | PQ round | PQ square | F1 | F1 round | F1 square |" in caplog.text


# ---------------------------------------------------------------------- weights, ensembles, bundles


def test_pretrained_weights_are_loaded_when_training_starts_and_only_then(segmenter, fit, trainer, data, monkeypatch):
    loads = []
    monkeypatch.setattr(PreactResNet, "load_pretrained", lambda self: loads.append(self.weights))
    encoder = {
        "_target_": "ihc2he.models.segmentation.encoders.PreactResNet",
        "width": 8,
        "units": [1, 1, 1, 1],
        "weights": "given.tar",
    }
    module = segmenter(encoder=encoder)
    assert module.pretrained
    assert not segmenter().pretrained
    runner = fit(module, data(), max_epochs=1)
    runner.test(module, datamodule=data(), verbose=False)
    assert loads == ["given.tar"]
    trainer().test(segmenter(encoder=encoder), datamodule=data(), verbose=False)
    assert loads == ["given.tar"]


def test_published_weights_that_are_not_there_are_named(segmenter, trainer, data):
    module = segmenter(weights="not/there.tar")
    assert not module.requires_checkpoint
    with pytest.raises(DataError, match=r"not/there.tar: cannot be read"):
        trainer().test(module, datamodule=data(), verbose=False)


def bundle(module: HoverNetSegmenter, folder: Path, **changes):
    network, info = module.exports()["segmenter"]
    return str(save_bundle(network, folder, info | {"mpp": 0.25} | changes))


def test_an_ensemble_averages_maps(segmenter, trainer, data, batch, tmp_path):
    first, second = segmenter(0), segmenter(1)
    module = segmenter(0, ensemble=[bundle(second, tmp_path / "second")])
    trainer().test(module, datamodule=data(), verbose=False)
    x = batch["image"]
    expected = (first.eval().predict_maps(x) + second.eval().predict_maps(x)) / 2
    torch.testing.assert_close(module.eval().predict_maps(x), expected)
    assert module.state_dict().keys() == first.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "both"),
    [({"classes": ["a", "b"]}, r"\['round', 'square'\].*\['a', 'b'\]"), ({"mpp": 0.5}, r"'mpp': 0\.25.*'mpp': 0\.5")],
)
def test_a_bundle_that_does_not_fit_an_ensemble_is_named(segmenter, trainer, data, tmp_path, changes, both):
    folder = bundle(segmenter(), tmp_path / "other", **changes)
    with pytest.raises(ConfigError, match=f"other cannot be averaged with this model.*{both}"):
        trainer().test(segmenter(ensemble=[folder]), datamodule=data(), verbose=False)


def test_fit_ends_with_a_segmenter_that_gives_the_same_maps(segmenter, fit, data, batch, tmp_path):
    module = segmenter()
    fit(module, data(), Bundles(str(tmp_path)), max_epochs=1, limit_val_batches=1)
    network, info = load_bundle(tmp_path / "segmenter")
    assert (info["role"], info["classes"], info["mpp"], info["window"]) == ("segmenter", ["round", "square"], 0.25, 64)
    assert (info["stain_in"], info["value_range"], info["overlap"]) == ("H&E", [0, 1], 16)
    assert info["decoder"] == {"_target_": "ihc2he.nuclei.decoders.hover.HoverDecoder", "keep_unmarked": True}
    assert info["metrics"]
    with torch.no_grad():
        maps = HoverDecoder().join(network(batch["image"]))
    torch.testing.assert_close(maps, module.eval().predict_maps(batch["image"]), rtol=1e-4, atol=1e-4)


def test_a_bundle_loads_without_lightning(segmenter, tmp_path):
    folder = bundle(segmenter(), tmp_path / "segmenter")
    code = (
        "import sys; from ihc2he.models.bundle import load_bundle\n"
        f"load_bundle({folder!r}); sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_checkpoints_hold_plain_values(segmenter, fit, data, batch, tmp_path):
    module = segmenter()
    fit(module, data(), LastCheckpoint(str(tmp_path)), max_epochs=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["classes"] == ["round", "square"]
    loaded = HoverNetSegmenter.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    assert torch.equal(loaded.predict_maps(batch["image"]), module.eval().predict_maps(batch["image"]))
