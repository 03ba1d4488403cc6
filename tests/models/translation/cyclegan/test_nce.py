"""The contrast of patches as a term of the CycleGAN."""

import numpy as np
import pytest
import torch

from ihc2he.callbacks.checkpoint import LastCheckpoint
from ihc2he.errors import ConfigError

ON = {"lambda_nce": 3.0, "nce_layers": [0, 4, 10]}


def test_on_both_directions_are_compared_and_the_rest_stays(small, fit, tiles):
    module, plain, data = small(**ON), small(), tiles(1, 16)
    batch = {"ihc": data.ihc, "he": data.he}
    module.draws = np.random.default_rng(5)
    losses, made = module.generator_losses(batch)
    others, _ = plain.generator_losses(batch)
    assert losses.keys() - others.keys() == {"nce_ihc", "nce_he"}
    assert all(torch.equal(losses[name], value) for name, value in others.items())
    draws = np.random.default_rng(5)
    for name, direction, stain in (("nce_ihc", "ihc2he", "he"), ("nce_he", "he2ihc", "ihc")):
        generator = module.generators[direction]
        source = batch[name.removeprefix("nce_")]
        expected = 3.0 * module.contrasts[direction](generator, source, made[stain], draws)
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-6)
    assert module.terms["nce"] == 3.0
    before = [p.clone() for p in module.contrasts.parameters()]
    fit(module, n=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.contrasts.parameters(), strict=True))


def test_off_there_are_no_heads(small):
    assert not hasattr(small(), "contrasts")
    assert "nce" not in small().terms


def test_a_run_in_two_parts_equals_the_run_in_one(small, fit, tmp_path):
    def weights(trainer):
        return trainer.lightning_module.state_dict()

    whole = weights(fit(small(**ON), max_epochs=2))
    fit(small(**ON), LastCheckpoint(str(tmp_path)), max_epochs=1)
    again = weights(fit(small(9, **ON), max_epochs=2, ckpt_path=tmp_path / "last.ckpt"))
    torch.testing.assert_close(again, whole, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_nce": -1.0}, "model.lambda_nce=-1.0: expected 0 or more"),
        ({"lambda_nce": 1.0, "nce_layers": [0, 99]}, r"model\.nce_layers=\[0, 99\]: expected indices from 0 to"),
        (
            {"generator": {"_target_": "ihc2he.models.translation.local.LocalUNet", "width": 4, "depth": 1}, **ON},
            "expected a generator with its layers in a Sequential `model`, for LocalUNet",
        ),
    ],
)
def test_wrong_settings_are_named(small, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)
