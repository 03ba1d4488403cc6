"""Translators from outside the package, by the command line and `--config-dir` alone: one unpaired, one paired.

They are small copies of what the package has itself, under other names of their configurations.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

SMALL = [
    "data=bci_sim", "data.simulate={tiles: 8, size: 64, seed: 0}", "data.crop_size=32", "data.num_workers=0",
    "data.val_fraction=0.3", "trainer=cpu", "model/generator=resnet_small", "model.generator={width: 8, n_blocks: 1}",
    "model.n_epochs=1", "model.n_epochs_decay=1", "trainer.log_every_n_steps=1", "hydra.run.dir=run",
]  # fmt: skip
OWN = {
    "cut": ["model/discriminator=patch_small", "model.layers=[0,4,7,10]", "model.n_patches=16", "model.width=8"],
    "pix2pix": ["model.discriminator.width=8"],
}
NAMES = {"cut": "contrast", "pix2pix": "pairs"}
TERMS = {"cut": {"g_he", "nce_ihc", "nce_he", "d_he"}, "pix2pix": {"g_he", "l1", "d_he"}}


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", ["cut", "pix2pix"])
def test_it_trains_is_judged_and_translates_in_the_pipeline(command, tmp_path, name):
    mine = tmp_path / "mine"
    shutil.copytree(Path(__file__).parent / name, mine, ignore=shutil.ignore_patterns("__pycache__"))
    done = command("--config-dir", "conf", f"experiment={NAMES[name]}_bci", *SMALL, *OWN[name], cwd=mine)
    assert done.status == 0, done.err
    run = mine / "run"
    logged = {key for row in rows(run / "metrics.csv") for key, value in row.items() if value}
    assert {f"train/loss_{term}" for term in TERMS[name]} <= logged
    assert {"val/he/ssim", "test/he/ssim"} <= logged
    assert not any("/ihc/" in key for key in logged)
    assert list((run / "checkpoints").glob("best_epoch*.ckpt"))
    assert {"he/psnr", "he/hematoxylin_correlation"} <= {row["metric"] for row in rows(run / "test.csv")}
    assert list((run / "images" / "val").glob("*.png"))
    (bundle,) = (run / "bundles").iterdir()
    info = json.loads((bundle / "config.json").read_text())
    assert bundle.name == "g_ihc2he"
    assert (info["role"], info["stain_in"], info["stain_out"], info["mpp"]) == ("translator", "IHC", "H&E", 0.46)

    (image, *_) = sorted((mine / "data").rglob("IHC/**/*.png"))
    done = command(
        "experiment=predict_tiles", f"data.path={image}", "data.mpp=0.46", "data.num_workers=0", "trainer=cpu",
        f"model.translators.cyclegan.weights={bundle}", "model.use.segmenters=[classical]", "model.workers=0",
        "out=found", "hydra.run.dir=predicted", cwd=mine,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert list((mine / "found").rglob("*.geojson"))


def test_a_typo_in_its_settings_is_named(cli, monkeypatch):
    mine = Path(__file__).parent / "cut"
    monkeypatch.syspath_prepend(str(mine))
    done = cli("--config-dir", f"{mine}/conf", "experiment=contrast_bci", "+model.n_patch=16")
    assert "model.n_patch: cut.CUT has no argument 'n_patch'. Did you mean 'n_patches'?" in done.err
    done = cli("--config-dir", f"{mine}/conf", "experiment=contrast_bci", "model.n_patches=1", "data=bci_sim")
    assert "model.n_patches=1: expected 2 or more" in done.err
