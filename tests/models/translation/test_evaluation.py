import logging

import pytest
import torch
from torch.utils.data import DataLoader

from ihc2he.metrics.distribution import FeaturesUnavailable
from ihc2he.models.translation.evaluation import TranslationEvaluation
from ihc2he.stain.deconvolution import HEMATOXYLIN


@pytest.fixture
def batch(tiles):
    return next(iter(DataLoader(tiles(3, 16), batch_size=3)))


def test_rows_and_means_hold_every_metric_in_both_directions(batch):
    evaluation = TranslationEvaluation(["psnr"], None)
    rows = evaluation.update(batch, {"he": batch["he"] + 0.2, "ihc": batch["ihc"]})
    assert [(row["name"], row["group"]) for row in rows] == [
        ("00000.png", "0"),
        ("00001.png", "3+"),
        ("00002.png", "3+"),
    ]
    values = evaluation.compute_and_reset()
    names = {"psnr", "hematoxylin_correlation", "nuclear_correlation"}
    expected = {f"{to}/{name}" for to in ("he", "ihc") for name in names} | {"he/dab_ratio"}
    assert set(rows[0]) == {"name", "group"} | expected
    assert set(values) == {key + group for key in expected for group in ("", "/0", "/3+")}
    assert set(evaluation.cards) == expected | {"ihc/dab_ratio", "he/lost", "he/invented", "he/dab_leakage"}
    # An offset of 0.2 in [-1, 1] is one of 0.1 in [0, 1]: PSNR 20 dB. Where it is cut off at 1 it is less.
    assert rows[0]["he/psnr"] == pytest.approx(20, abs=0.5)
    assert values["ihc/psnr"] == 100
    assert values["he/psnr/3+"].item() == pytest.approx((rows[1]["he/psnr"] + rows[2]["he/psnr"]) / 2, rel=1e-5)
    assert evaluation.compute_and_reset() == {}


def test_where_the_true_nuclei_are_known_those_lost_and_invented_are_counted(batch):
    evaluation = TranslationEvaluation([], None)
    inst = torch.zeros(3, 16, 16, dtype=torch.int32)
    inst[:, 5:12, 5:12] = 1
    batch |= {"inst": inst, "mpp": torch.full((3,), 0.5, dtype=torch.float64)}
    square = torch.where(inst[:, None] > 0, torch.tensor([-0.5, -0.7, 0.0]).view(3, 1, 1), torch.ones(3, 1, 1))
    square[2] = 1
    rows = evaluation.update(batch, {"he": square, "ihc": batch["ihc"]})
    assert [(row["he/lost"], row["he/invented"]) for row in rows] == [(0, 0), (0, 0), (1, 0)]
    values = evaluation.compute_and_reset()
    assert values["he/lost"].item() == pytest.approx(1 / 3)
    assert {"he/invented", "he/dab_leakage", "he/lost/3+"} <= values.keys() <= {
        f"{key}{group}" for key in evaluation.cards for group in ("", "/0", "/3+")
    }  # fmt: skip


def test_without_pairs_there_is_no_fidelity(batch):
    evaluation = TranslationEvaluation(["psnr"], None)
    batch["paired"][1] = False
    (row, *_) = evaluation.update(batch, {"he": batch["he"], "ihc": batch["ihc"]})
    assert "he/psnr" not in row
    assert "he/hematoxylin_correlation" in row


def test_distributions_compare_real_and_made_images_of_the_same_stain(batch):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    evaluation = TranslationEvaluation([], network)
    evaluation.update(batch, {"he": batch["he"], "ihc": batch["he"]})
    values = evaluation.compute_and_reset()
    assert values["he/fid"].item() == pytest.approx(0, abs=1e-3)
    assert values["ihc/fid"] > 0.01
    assert {"he/fid", "ihc/kid"} <= set(evaluation.cards)


def test_missing_features_are_said_once_and_the_rest_goes_on(batch, monkeypatch, caplog):
    class Unavailable:
        def to(self, device):
            return self

        def update(self, *args, **kwargs):
            raise FeaturesUnavailable("no weights here")

    evaluation = TranslationEvaluation(["psnr"], None)
    evaluation.distributions = {"he": Unavailable(), "ihc": Unavailable()}
    for _ in range(2):
        evaluation.update(batch, {"he": batch["he"], "ihc": batch["ihc"]})
    assert [r.getMessage() for r in caplog.records] == ["FID and KID are left out. no weights here"]
    assert "he/psnr" in evaluation.compute_and_reset()
    assert "he/fid" not in evaluation.cards


def test_a_rank_whose_network_fails_takes_fid_from_all_of_them(batch, monkeypatch, caplog):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    fine, failing = (TranslationEvaluation(["psnr"], network) for _ in range(2))

    def unavailable():
        raise FeaturesUnavailable("no weights here")

    for metric in failing.distributions.values():  # a rank without images asks for its network only now
        monkeypatch.setattr(metric, "prepare", unavailable)
    said = []
    monkeypatch.setattr("ihc2he.models.translation.evaluation.from_all_ranks", lambda own: said.append(own) or said)
    assert "he/fid" not in failing.compute_and_reset()
    fine.update(batch, {"he": batch["he"], "ihc": batch["ihc"]})
    values = fine.compute_and_reset()
    assert said == [False, True]
    assert "he/psnr" in values
    assert "he/fid" not in values
    assert [r.getMessage() for r in caplog.records] == ["FID and KID are left out. no weights here"]


@pytest.mark.parametrize(("to", "other"), [("he", "ihc"), ("ihc", "he")])
def test_one_direction_is_evaluated_alone(batch, to, other):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    evaluation = TranslationEvaluation(["psnr"], network, [to])
    evaluation.update(batch, {to: batch[to]})
    values = evaluation.compute_and_reset()
    assert values[f"{to}/psnr"] == 100
    assert f"{to}/fid" in values
    assert not any(key.startswith(f"{other}/") for key in [*values, *evaluation.cards])


@pytest.mark.parametrize(("to", "metric"), [("he", "hematoxylin_correlation"), ("ihc", "nuclear_correlation")])
def test_the_first_stain_that_is_made_raises_the_alarm(to, metric):
    evaluation = TranslationEvaluation([], None, [to])
    assert "at -0.25; below 0 means" in evaluation.inverted({f"{to}/{metric}": torch.tensor(-0.25)})
    for fine in ({f"{to}/{metric}": torch.tensor(0.25)}, {f"{to}/{metric}": torch.tensor(torch.nan)}, {}):
        assert evaluation.inverted(fine) is None


@pytest.mark.parametrize(("sign", "alarms"), [(-1.0, 1), (1.0, 0)])
def test_a_generator_that_swaps_nuclei_and_background_raises_the_alarm(
    small, trainer, tiles, negative, caplog, sign, alarms
):
    with caplog.at_level(logging.WARNING, "ihc2he"):
        data = tiles(2, 16)
        hematoxylin_n1hw = torch.rand(2, 1, 16, 16)
        data.ihc = 2 * 10 ** (-hematoxylin_n1hw * torch.tensor(HEMATOXYLIN).view(3, 1, 1)) - 1
        (values,) = trainer().validate(small(generator=negative(sign)), DataLoader(data), verbose=False)
    assert (values["val/he/hematoxylin_correlation"] < 0) == bool(alarms)
    heard = [r.getMessage() for r in caplog.records if "INVERTED STAINS" in r.getMessage()]
    assert len(heard) == alarms
    assert all("Raise model.lambda_identity" in line for line in heard)


def test_metrics_are_logged_per_stage_and_stay_out_of_checkpoints(small, trainer, tiles):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    module = small(metrics=["psnr"])
    keys = set(module.state_dict())
    module.evaluation = TranslationEvaluation(["psnr"], network)
    (values,) = trainer().test(module, DataLoader(tiles(3, 16)), verbose=False)
    assert {"test/he/psnr", "test/ihc/psnr/3+", "test/he/fid", "test/he/dab_ratio"} <= set(values)
    assert set(module.state_dict()) == keys
    assert {key.split(".")[0] for key in keys} == {"g_ihc2he", "g_he2ihc", "d_ihc", "d_he"}


def test_panels_show_eight_pictures_of_each_tile(small, batch, negative):
    module = small(generator=negative())
    rows = module.panels(batch)
    assert len(rows) == 3
    shown = dict(rows[1])
    assert list(shown) == ["IHC", "made H&E", "real H&E", "IHC again", "H&E", "made IHC", "real IHC", "H&E again"]
    assert torch.equal(shown["IHC again"], batch["ihc"][1])
    assert torch.equal(shown["made H&E"], -batch["ihc"][1])
    assert torch.equal(shown["H&E"], batch["he"][1])
    assert torch.equal(shown["made IHC"], -batch["he"][1])
