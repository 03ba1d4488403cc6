import json
import logging

import pytest
import torch

from ihc2he.callbacks.bundles import Bundles, best_keeper
from ihc2he.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from ihc2he.models.bundle import load_bundle


def test_the_best_weights_are_exported_and_the_last_stay_in_memory(toy, tiles, trainer, tmp_path):
    module = toy(scores=(0.1, 0.9, 0.5))
    keepers = [LastCheckpoint(str(tmp_path)), BestCheckpoint(str(tmp_path), "val/score", "max")]
    runner = trainer(*keepers, Bundles(str(tmp_path / "bundles")))
    runner.fit(module, tiles)
    network, info = load_bundle(tmp_path / "bundles" / "net")
    assert network.weight.tolist() == [-4, -4, -4]  # two epochs of two steps
    assert module.net.weight.tolist() == [-6, -6, -6]
    assert best_keeper(runner) is keepers[1]
    assert (info["epoch"], info["mpp"], info["role"]) == (1, 0.46, "translator")
    assert info["metrics"] == {"val/score": pytest.approx(0.9)}
    assert info["module"] == {"_target_": "torch.nn.PReLU", "num_parameters": 3}


def test_without_a_best_checkpoint_the_last_weights_are_exported(toy, tiles, trainer, tmp_path):
    runner = trainer(BestCheckpoint(str(tmp_path), "val/other", "max"), Bundles(str(tmp_path / "bundles")))
    runner.fit(toy(scores=(0.1, 0.9, 0.5)), tiles)
    network, info = load_bundle(tmp_path / "bundles" / "net")
    assert best_keeper(runner) is None
    assert network.weight.tolist() == [-6, -6, -6]
    assert info["metrics"] == {"val/score": pytest.approx(0.5)}
    assert json.loads((tmp_path / "bundles" / "net" / "config.json").read_text()) == info


def test_a_finished_run_continued_in_a_new_folder_exports_the_weights_it_loaded(toy, tiles, trainer, tmp_path):
    former, new = tmp_path / "former", tmp_path / "new"
    trainer(LastCheckpoint(str(former)), BestCheckpoint(str(former), "val/score", "max")).fit(
        toy(scores=(0.1, 0.9, 0.5)), tiles
    )
    runner = trainer(LastCheckpoint(str(new)), BestCheckpoint(str(new), "val/score", "max"), Bundles(str(new)))
    runner.fit(toy(scores=(0.1, 0.9, 0.5)), tiles, ckpt_path=str(former / "last.ckpt"), weights_only=True)
    network, _ = load_bundle(new / "net")
    assert best_keeper(runner) is None
    assert network.weight.tolist() == [-6, -6, -6]


def test_bundles_in_half_precision_load_as_float32_in_half_the_space(toy, tiles, trainer, tmp_path):
    for half in (False, True):
        trainer(Bundles(str(tmp_path / str(half)), half)).fit(toy(), tiles)
    whole, half = (load_bundle(tmp_path / name / "net")[0].weight for name in ("False", "True"))
    assert half.dtype == torch.float32
    assert torch.equal(half, whole.half().float())
    sizes = [(tmp_path / name / "net" / "model.safetensors").stat().st_size for name in ("False", "True")]
    assert sizes[0] - sizes[1] >= 6


def test_a_network_that_was_given_as_an_object_is_named(toy, tiles, trainer, tmp_path, caplog):
    module = toy()
    module.node = None
    with caplog.at_level(logging.WARNING, "ihc2he"):
        trainer(Bundles(str(tmp_path / "bundles"))).fit(module, tiles)
    assert any("No bundle 'net'" in record.getMessage() for record in caplog.records)
    assert not (tmp_path / "bundles").exists()


def test_an_interrupted_run_leaves_no_bundle(toy, tiles, trainer, tmp_path):
    class Interrupted(toy):
        def loss(self, batch, batch_idx):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(Bundles(str(tmp_path / "bundles"))).fit(Interrupted(), tiles)
    assert not (tmp_path / "bundles").exists()


def test_the_average_of_a_cyclegan_is_exported(trainer, tmp_path):
    from torch.utils.data import DataLoader

    from ihc2he.models.translation.cyclegan.module import CycleGAN

    networks = "ihc2he.models.translation.cyclegan.networks"
    module = CycleGAN(
        {"_target_": f"{networks}.ResnetGenerator", "width": 4, "n_blocks": 1},
        {"_target_": f"{networks}.PatchDiscriminator", "width": 4, "n_layers": 1},
        {"_target_": "torch.optim.Adam", "lr": 1e-2},
        ema_decay=0.5,
    )
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    loader = DataLoader([{"ihc": image, "he": -image} for image in images])
    trainer(Bundles(str(tmp_path)), use_distributed_sampler=False).fit(module, loader)
    for name, to in (("g_ihc2he", "he"), ("g_he2ihc", "ihc")):
        network, info = load_bundle(tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(network(images), module.translate(images, to))
            assert not torch.allclose(network(images), getattr(module, name)(images), atol=1e-3)
        assert info["value_range"] == [-1, 1]
    assert (info["stain_in"], info["stain_out"], info["mpp"]) == ("H&E", "IHC", None)
