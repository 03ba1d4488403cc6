import pytest
from torch import nn
from torch.optim import Optimizer

from ihc2he.build import build
from ihc2he.errors import ConfigError


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.hub.load", "torch.nn.functional.torch.hub.load", "builtins.eval", "lightning.pytorch.Trainer",
     "torch.nn.init.zeros_"],
)  # fmt: skip
def test_only_the_expected_kind_of_class_is_built(target):
    with pytest.raises(ConfigError, match=r"is not a Module|does not exist"):
        build({"_target_": target}, nn.Module)


def test_a_built_object_passes_through():
    module = nn.Identity()
    assert build(module, nn.Module) is module


def test_arguments_reach_the_class_and_nested_nodes_stay_plain():
    linear = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, nn.Module)
    assert linear.weight.shape == (3, 2)


def test_a_class_that_refuses_its_arguments_is_named():
    with pytest.raises(ConfigError, match=r"Building torch.nn.Linear failed: .*out_features"):
        build({"_target_": "torch.nn.Linear", "in_features": 2}, nn.Module)
    with pytest.raises(ConfigError, match=r"Building torch.optim.Adam failed: Invalid learning rate"):
        build({"_target_": "torch.optim.Adam", "lr": -1.0}, Optimizer, params=nn.Linear(1, 1).parameters())


def test_a_node_without_target_is_named():
    with pytest.raises(ConfigError, match="Expected a mapping with a _target_ that names a Module"):
        build({"width": 3}, nn.Module)
