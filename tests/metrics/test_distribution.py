import hashlib
import logging
import math
import socket
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ihc2he.errors import ConfigError
from ihc2he.metrics import distribution
from ihc2he.metrics.distribution import CARDS, Distribution, FeaturesUnavailable, feature_network, frechet_distance


def small_network():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def images(n, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def distances(real, fake, network=None):
    metric = Distribution(network or small_network())
    for kind, is_real in ((real, True), (fake, False)):
        for batch in kind.split(3) if len(kind) else ():
            metric.update(batch, real=is_real)
    return {name: value.item() for name, value in metric.compute().items()}


class Passthrough(nn.Module):
    """A feature network for oracles that are given features."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x


@pytest.mark.parametrize(("n", "width"), [(200, 16), (20, 64)])
def test_fid_is_that_of_torchmetrics(n, width):
    generator = torch.Generator().manual_seed(0)
    real, fake = (
        torch.randn(n, width, generator=generator) @ torch.randn(width, width, generator=generator) for _ in "rf"
    )
    oracle = FrechetInceptionDistance(Passthrough(width)).set_dtype(torch.float64)
    oracle.update(real.double(), real=True)
    oracle.update(fake.double(), real=False)
    assert frechet_distance(real, fake).item() == pytest.approx(oracle.compute().item(), rel=1e-4)


def test_fid_of_one_feature_is_the_closed_form():
    x = torch.tensor([[0.0], [2.0], [4.0]])  # mean 2, deviation 2
    assert frechet_distance(x, 3 * x + 1).item() == pytest.approx((7 - 2) ** 2 + (6 - 2) ** 2)


def test_kid_is_that_of_torchmetrics():
    real, fake = images(20), images(20, seed=1) ** 2
    oracle = KernelInceptionDistance(small_network(), subsets=1, subset_size=20)
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    found = distances(real, fake)
    assert found["kid"] == pytest.approx(oracle.compute()[0].item(), abs=1e-6)
    assert found["kid_std"] == 0


@pytest.mark.parametrize("name", CARDS)
def test_distances_grow_with_the_shift_as_their_cards_say(name):
    real = images(30)
    scores = [distances(real, images(30, seed=1) * (1 - shift))[name] for shift in (0.0, 0.2, 0.6)]
    assert not CARDS[name].higher_is_better
    assert scores == sorted(scores)
    assert distances(real, real)[name] == pytest.approx(0, abs=0.02)


def test_sizes_are_reported_and_kid_takes_what_there_is():
    found = distances(images(12), images(7, seed=1))
    assert (found["n_real"], found["n_fake"], found["kid_subset"]) == (12, 7, 7)
    assert found["kid_std"] > 0


def test_random_subsets_repeat_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert distances(images(12), images(7, seed=1)) == distances(images(12), images(7, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("n_real", "n_fake"), [(0, 5), (1, 5), (5, 1)])
def test_fewer_than_two_images_are_nan_and_said(n_real, n_fake, caplog):
    with caplog.at_level(logging.WARNING):
        found = distances(images(5)[:n_real], images(5)[:n_fake])
    assert all(math.isnan(found[name]) for name in ("fid", "kid", "kid_std"))
    assert f"FID and KID need two images, found {n_real} real and {n_fake} fake: NaN." in caplog.messages


def test_the_network_stays_out_of_the_module_and_in_evaluation_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    metric = Distribution(network)
    metric.update(images(4), real=True)
    assert not metric.state_dict()
    assert not list(metric.parameters())
    assert not network.training
    assert not metric.real_features[0].requires_grad


def test_nothing_is_built_before_the_first_batch(monkeypatch):
    monkeypatch.setattr(distribution, "feature_network", lambda _: pytest.fail("built too early"))
    Distribution("inception")


def test_images_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"images_bchw must lie in \[0, 1\], found -1 to"):
        Distribution(small_network()).update(images(2) * 0 - 1, real=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("inceptoin", "'inceptoin' is not a feature network: use 'inception' or a torch.nn.Module"),
        (nn.Identity(), r"Identity returned \(2, 3, 64, 64\) for two images: a feature network must map"),
        (nn.Flatten(0), r"Flatten returned \(24576,\) for two images"),
        (nn.Linear(5, 5), r"Linear failed on two images of 64 px \(.*mat1 and mat2 .*\): a feature network must map"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        feature_network(spec)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the empty folder in which the weights are looked for."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FeaturesUnavailable, match=r"pip install ihc2he\[fid\]`, or set model.features to"):
        feature_network("inception")


def test_offline_says_where_to_put_the_weights(hub, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(distribution, "urlopen", offline)
    with pytest.raises(FeaturesUnavailable) as error:
        feature_network("inception")
    message = str(error.value)
    assert f"need {hub}/weights-inception-2015-12-05-6726825d.pth" in message
    assert "Name or service not known" in message
    assert "put https://github.com/toshas/torch-fidelity/" in message
    assert not list(hub.iterdir())


def test_a_server_that_never_answers_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth"
        with pytest.raises(FeaturesUnavailable, match=r"downloading it failed .*timed out"):
            distribution._download(url, tmp_path / "weights.pth")
    assert not list(tmp_path.iterdir())


def publish(path, content, monkeypatch):
    """Write the file and make its hash the published one."""
    path.write_bytes(content)
    monkeypatch.setattr(distribution, "_WEIGHTS_SHA256", hashlib.sha256(content).hexdigest())


def test_a_download_arrives_whole(tmp_path, monkeypatch):
    publish(tmp_path / "source", b"weights", monkeypatch)
    distribution._download((tmp_path / "source").as_uri(), tmp_path / "hub" / "weights.pth")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "hub").iterdir()] == [("weights.pth", b"weights")]


def test_a_download_of_something_else_is_refused_and_removed(tmp_path):
    (tmp_path / "source").write_bytes(b"a login page")
    with pytest.raises(FeaturesUnavailable, match=r"is not the Inception of FID: sha256 .*, expected 6726825d"):
        distribution._download((tmp_path / "source").as_uri(), tmp_path / "hub" / "weights.pth")
    assert not list((tmp_path / "hub").iterdir())


def test_a_broken_file_of_weights_is_refused_before_it_is_unpickled(hub):
    hub.mkdir()
    (hub / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"broken")
    with pytest.raises(FeaturesUnavailable, match="Delete it, run again"):
        feature_network("inception")


def test_inception_gives_2048_features_of_rounded_images(hub, monkeypatch):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs the extra `fid`")
    hub.mkdir()
    weights = hub / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, weights)
    publish(weights, weights.read_bytes(), monkeypatch)
    monkeypatch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    network = feature_network("inception")
    seen = []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert network(torch.full((2, 3, 16, 16), 100.6 / 255)).shape == (2, 2048)
    assert seen[0].dtype == torch.uint8
    assert (seen[0] == 101).all()


def test_two_ranks_equal_one(on_two_ranks):
    script = """
from torch import nn
from ihc2he.metrics.distribution import Distribution
torch.manual_seed(0)
real, fake = torch.rand(9, 3, 8, 8), torch.rand(9, 3, 8, 8) ** 2
shares = {"uneven": (slice(0, 6), slice(6, 9)), "idle": (slice(0, 9), None)}
result = {}
for name, share in shares.items():
    metric = Distribution(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    if share[rank] is not None:
        metric.update(real[share[rank]], real=True)
        metric.update(fake[share[rank]], real=False)
    result[name] = {key: value.item() for key, value in metric.compute().items()}
"""
    torch.manual_seed(0)
    expected = distances(torch.rand(9, 3, 8, 8), torch.rand(9, 3, 8, 8) ** 2)
    for rank in on_two_ranks(script):
        assert rank["uneven"] == pytest.approx(expected, abs=1e-6)
        assert rank["idle"] == pytest.approx(expected, abs=1e-6)


def test_the_kernel_distance_is_that_of_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    from ihc2he.metrics.distribution import _squared_mmd

    generator = torch.Generator().manual_seed(0)
    x_nd, y_nd = torch.rand(50, 32, generator=generator), torch.rand(50, 32, generator=generator) + 0.1
    assert _squared_mmd(x_nd, y_nd).item() == pytest.approx(poly_mmd(x_nd, y_nd).item(), rel=1e-4)
