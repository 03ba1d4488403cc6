"""Losses of centres: what counts, and what does not."""

import torch

from ihc2he.losses.centres import centre_losses


def test_types_count_on_background_and_on_nuclei_whose_type_is_known():
    torch.manual_seed(0)
    inst = torch.tensor([[[0, 1, 2, 2]]])
    targets = {"inst": inst, "centre": torch.zeros(1, 1, 4), "type": torch.tensor([[[0, 1, 0, 0]]])}
    maps = {"mask": torch.zeros(1, 1, 1, 4), "centre": torch.zeros(1, 1, 1, 4), "types": torch.randn(1, 3, 1, 4)}
    losses = centre_losses(maps, targets)
    log_p = maps["types"].log_softmax(1)
    torch.testing.assert_close(losses["types"], -(log_p[0, 0, 0, 0] + log_p[0, 1, 0, 1]) / 2)
    assert "types" not in centre_losses({k: v for k, v in maps.items() if k != "types"}, targets)
