"""Crops painted by a generator: which, at what pixel size, and that a painting without its nuclei is not used."""

from types import SimpleNamespace

import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.models.bundle import save_bundle
from ihc2he.models.segmentation.painting import NetworkPainter
from ihc2he.models.segmentation.unet.module import UNetSegmenter
from ihc2he.models.translation.cyclegan.networks import ResnetGenerator

NODE = {"_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator", "width": 4, "n_blocks": 1}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return the bundles of an untrained generator, by the stain it makes."""
    torch.manual_seed(0)
    network, home = ResnetGenerator(width=4, n_blocks=1), tmp_path_factory.mktemp("bundles")
    info = {"module": NODE, "role": "translator", "value_range": [-1, 1], "mpp": 0.4}
    stains = {"ihc": {"stain_in": "H&E", "stain_out": "IHC"}, "he": {"stain_in": "IHC", "stain_out": "H&E"}}
    return {to: str(save_bundle(network, home / to, info | named)) for to, named in stains.items()}


class Fake:
    """A generator that darkens, and makes the second crop white."""

    mpp = 1.0

    def __call__(self, x_bchw):
        self.seen = x_bchw
        return torch.stack([x_bchw[0] * 0.8, *torch.ones_like(x_bchw[1:])])


def nuclei(n):
    """Violet discs on pink."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    inside = ((x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 20).float()
    violet, pink = torch.tensor([0.35, 0.2, 0.5]), torch.tensor([0.9, 0.7, 0.85])
    return (inside * violet.view(3, 1, 1) + (1 - inside) * pink.view(3, 1, 1)).expand(n, 3, 32, 32).clone()


def test_a_painting_is_used_only_with_its_nuclei_and_at_the_generators_pixel_size():
    painter = NetworkPainter("bundle", share=1.0)
    painter._network = Fake()
    x, drawn = nuclei(3), torch.tensor([True, False, True])
    made, painted = painter(x, drawn, mpp=0.5)
    assert painter._network.seen.shape == (2, 3, 16, 16)  # half the pixels, and back
    assert painted.tolist() == [True, False, False]
    torch.testing.assert_close(made[0, :, 8, 8], 0.8 * x[0, :, 8, 8], atol=0.05, rtol=0)
    assert torch.equal(made[1:], x[1:])
    assert torch.equal(x, nuclei(3))
    painter.least_correlation = -1
    assert painter(x, drawn, mpp=0.5)[1].tolist() == [True, False, True]


def test_the_share_is_drawn_by_seed_epoch_and_batch():
    painter = NetworkPainter("bundle", share=0.3)
    draws = torch.stack([painter.draw(8, epoch, batch) for epoch in range(20) for batch in range(20)])
    assert draws.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(painter.draw(8, 3, 4), draws[64])
    assert not torch.equal(NetworkPainter("bundle", share=0.3, seed=1).draw(100, 0, 0), painter.draw(100, 0, 0))
    assert not NetworkPainter(None, share=1.0).draw(8, 0, 0).any()


def test_a_training_paints_what_the_augmentation_has_not(bundles, monkeypatch):
    module = UNetSegmenter(
        encoder={"_target_": "ihc2he.models.segmentation.encoders.PreactResNet", "width": 4, "units": [1, 1, 1, 1]},
        decoder={"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"},
        optimizer={"_target_": "torch.optim.AdamW"},
        width=4,
        paint={
            "_target_": "ihc2he.models.segmentation.painting.NetworkPainter",
            "generator": bundles["ihc"], "share": 1.0, "least_correlation": -1,
        },
    )  # fmt: skip
    logged = {}
    module.log = lambda key, value, **_: logged.update({key: float(value)})
    at = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
    monkeypatch.setattr(UNetSegmenter, "trainer", at)
    monkeypatch.setattr(UNetSegmenter, "mpp", 0.5)
    module.painter.prepare("cpu")
    assert not [name for name in module.state_dict() if not name.startswith("network.")]
    batch = {"image": nuclei(4), "painted": torch.tensor([True, False, False, True])}
    made = module.seen(batch, 0)
    changed = (made != batch["image"]).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, False]
    assert logged == {"train/painted_share": 0.5, "train/refused_share": 0.0}
    assert made.shape == batch["image"].shape
    assert 0 <= made.min() <= made.max() <= 1


def test_what_is_no_generator_of_ihc_is_refused(bundles):
    with pytest.raises(
        ConfigError, match=r"from IHC to H&E; expected a translator from H&E to IHC, such as RUN/bundles/g_he2ihc"
    ):
        NetworkPainter(bundles["he"]).prepare("cpu")
    with pytest.raises(ConfigError, match=r"model.paint.generator=last.ckpt: expected a bundle"):
        NetworkPainter("last.ckpt")
    with pytest.raises(ConfigError, match=r"model.paint.share=2: expected from 0 to 1"):
        NetworkPainter("bundle", share=2)
    with pytest.raises(ConfigError, match=r"is not loaded yet. Call prepare"):
        NetworkPainter("bundle")(nuclei(1), torch.tensor([True]), 0.5)
