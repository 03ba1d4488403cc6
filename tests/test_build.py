from collections.abc import Mapping, Sequence

import pytest
from torch import nn
from torch.optim import Optimizer

from ihc2he.build import build, check_arguments
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": "abc"}, r"sizes='abc'; expected a list\. In brackets: sizes=\[abc\]"),
        ({"sizes": [1, "b"]}, r"sizes=\[1, 'b'\]; expected a list"),
        ({"rate": "fast"}, r"rate='fast'; expected a number or null"),
        ({"rate": True}, r"rate=True; expected a number or null"),
        ({"rate": float("nan")}, r"rate=nan; expected a number or null"),
        ({"n": 1.5}, r"n=1\.5; expected a whole number"),
        ({"on": None}, r"on=None; expected true or false"),
        ({"inner": 3}, r"inner=3; expected a mapping or a Module"),
    ],
)
def test_a_value_of_another_kind_is_named(arguments, message):
    class Target:
        def __init__(
            self,
            n: int = 1,
            rate: float | None = None,
            on: bool = False,
            sizes: Sequence[int] = (),
            inner: Mapping[str, int] | nn.Module | None = None,
        ) -> None:
            pass  # fmt: skip

    check_arguments(Target, {"_target_": "T", "n": 2, "rate": 1, "on": True, "sizes": [1], "inner": {"a": 1}})
    check_arguments(Target, {"_target_": "T", "rate": None, "inner": nn.Identity(), "unknown": "x"})
    with pytest.raises(ConfigError, match=rf"T: {message}"):
        check_arguments(Target, {"_target_": "T", **arguments})


def test_a_node_cannot_ask_for_something_unfinished():
    linear = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, "_partial_": True}, nn.Module)
    assert isinstance(linear, nn.Linear)


def test_a_class_that_fails_in_another_way_is_named():
    with pytest.raises(ConfigError, match=r"Building torch.nn.Linear failed: RuntimeError: .*"):
        build({"_target_": "torch.nn.Linear", "in_features": -2, "out_features": 3}, nn.Module)
