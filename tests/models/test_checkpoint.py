import pickle

import pytest
import torch

from ihc2he.errors import DataError
from ihc2he.models.checkpoint import read_checkpoint

CONTENT = {
    "state_dict": {"weight": torch.arange(6.0).reshape(2, 3)},
    "hyper_parameters": {"width": 4},
    "pytorch-lightning_version": "2.6.4",
    "optimizer_states": [{"state": {}}],
    "lr_schedulers": [],
    "loops": {"fit_loop": {"epoch_progress": {}}},
    "callbacks": {},
    "epoch": 1,
    "global_step": 3,
}


@pytest.fixture
def path(tmp_path):
    torch.save(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_whole_checkpoint_comes_back(path):
    content = read_checkpoint(path, to_continue=True)
    assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])


def test_a_changed_bit_is_noticed_and_the_others_are_offered(path):
    data = bytearray(path.read_bytes())
    data[data.index(CONTENT["state_dict"]["weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(bytes(data))
    torch.save(CONTENT, path.with_name("best.ckpt"))
    with pytest.raises(DataError, match=r"last\.ckpt: .*its part .*data/0 is damaged.* Beside it: .*best\.ckpt\."):
        read_checkpoint(path)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("archive", [True, False])
def test_no_code_is_executed(path, archive):
    marker = path.with_name("owned")
    content = CONTENT | {"callbacks": Hostile(marker)}
    torch.save(content, path) if archive else path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"last\.ckpt: not a readable checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"state_dict": None}, "it has no state_dict"),
        ({"state_dict": {"weight": torch.tensor(float("nan"))}}, "its weight is NaN or infinite"),
        ({"state_dict": {"weight": "text"}}, "its weight is no tensor"),
        ({"pytorch-lightning_version": "1.9.5"}, "it was written by Lightning 1.9.5, and 2 or later is needed"),
        ({"loops": None}, "it has no loops"),
        ({"loops": {"fit_loop": {}}}, "it does not say how far training was"),
        ({"optimizer_states": []}, "it has no state of an optimiser"),
    ],
)
def test_what_is_missing_is_named(path, change, problem):
    torch.save(CONTENT | change, path)
    with pytest.raises(DataError, match=rf"last\.ckpt: not a readable checkpoint.*{problem}.*Expected"):
        read_checkpoint(path, to_continue=True)


def test_weights_alone_are_no_checkpoint(path):
    torch.save(CONTENT["state_dict"], path)
    with pytest.raises(DataError, match="it has no state_dict"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="found a list"):
        read_checkpoint(path)
