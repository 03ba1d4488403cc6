"""CUT and pix2pix by the command line, from simulated tissue to a bundle that the pipeline translates with."""

import csv
import json

import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.models.pipeline.translators import LearnedTranslator


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "to", "terms"),
    [
        (["experiment=smoke/cut_bci"], "he", {"g_he", "nce_ihc", "nce_he", "d_he"}),
        (["experiment=smoke/cut_bci", "model=fastcut", "model.to=ihc"], "ihc", {"g_ihc", "nce_he", "d_ihc"}),
        (["experiment=smoke/pix2pix_bci"], "he", {"g_he", "l1", "pyramid", "nce", "asp", "d_he"}),
        (
            ["experiment=smoke/pix2pix_bci", "model=pyramid_pix2pix", "model.lambda_asp=0", "model.lambda_nce=0",
             "model.to=ihc"],
            "ihc",
            {"g_ihc", "l1", "pyramid", "d_ihc"},
        ),
    ],
    ids=["CUT", "FastCUT to IHC", "pix2pix", "pyramid pix2pix to IHC"],
)  # fmt: skip
def test_it_trains_is_judged_and_translates(cli, tmp_path, arguments, to, terms):
    done = cli(*arguments, "hydra.run.dir=run")
    assert done.status == 0, done.err
    run, direction, other = tmp_path / "run", *(("ihc2he", "ihc") if to == "he" else ("he2ihc", "he"))
    logged = {key for row in rows(run / "metrics.csv") for key, value in row.items() if value}
    assert {key.removeprefix("train/loss_") for key in logged if "train/loss_" in key} == terms | {"g", "d"}
    assert {f"val/{to}/ssim", f"test/{to}/ssim"} <= logged
    assert not any(key.startswith((f"val/{other}/", f"test/{other}/")) for key in logged)
    (best,) = (run / "checkpoints").glob("best_epoch*.ckpt")
    assert f"{to}/psnr" in {row["metric"] for row in rows(run / "test.csv")}
    (bundle,) = (run / "bundles").iterdir()
    assert bundle.name == f"g_{direction}"
    info = json.loads((bundle / "config.json").read_text())
    assert info["mpp"] == 0.46
    weights = {"adversarial"} | {term.partition("_")[0] for term in terms if term[:2] not in ("g_", "d_")}
    assert set(info["terms"]) == weights
    if to == "ihc":
        with pytest.raises(ConfigError, match="translator from H&E to IHC; expected a translator from IHC to H&E"):
            LearnedTranslator(str(bundle))
        return
    x = torch.rand(1, 3, 40, 52)
    made = LearnedTranslator(str(bundle))(x)
    assert made.shape == x.shape
    torch.testing.assert_close(made, LearnedTranslator(str(best), mpp=0.46)(x), atol=0.05, rtol=0)


def test_a_typo_and_a_layer_that_is_not_there_are_named(cli):
    done = cli("experiment=smoke/cut_bci", "+model.n_patch=16")
    assert "model.n_patch: ihc2he.models.translation.cut.module.CUT has no argument 'n_patch'." in done.err
    done = cli("experiment=smoke/cut_bci", "model.layers=[0,40]")
    assert "model.layers=[0, 40]: expected indices from 0 to" in done.err


@pytest.mark.slow
def test_pix2pix_refuses_data_without_pairs(cli):
    done = cli("experiment=smoke/pix2pix_bci", "data.paired=false")
    assert done.status == 2
    assert "pix2pix is trained on pairs. Pass data.paired=true with data=bci" in done.err
