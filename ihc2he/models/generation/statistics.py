"""Batch statistics of an averaged generator: its own, not those of the generator that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ihc2he.models.generation.draws import Draws

BATCHES, BATCH = 16, 64


class _OfPairs(nn.Module):
    """A generator that takes latents and levels as one."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.training = generator.training  # which `update_bn` restores

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.generator(*pair)


def measure_statistics(generator: nn.Module, latent_size: int, n_classes: int) -> None:
    """Measure a generator's batch statistics in place, over latents that are always the same, of all levels in turn.

    Averaged weights make other activations than any weights of the way, so that the statistics of the trained generator
    do not fit them; those move with each batch besides (Izmailov et al., UAI 2018).

    Args:
        generator: maps (N, d) latents and (N,) levels to tiles.
        latent_size: d.
        n_classes: levels.
    """
    parameter, draws = next(generator.parameters()), Draws((0,))
    z_bd = draws.normal(BATCHES * BATCH, latent_size).to(parameter)
    label_b = torch.arange(len(z_bd), device=z_bd.device) % n_classes
    update_bn(((pair,) for pair in zip(z_bd.split(BATCH), label_b.split(BATCH), strict=True)), _OfPairs(generator))
