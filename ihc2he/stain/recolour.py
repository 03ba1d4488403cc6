"""IHC rendered as H&E without learning: colour deconvolution into hematoxylin and DAB, and Beer-Lambert back.

Shape suffixes: b = batch, c = colour (3), h, w = height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ihc2he.stain.deconvolution import IHC, separate_batch

if TYPE_CHECKING:
    import torch

# Stain vectors of H&E in which the result is drawn: the published reference of Macenko et al., ISBI 2009. They come
# closer to the colours of scanned H&E than those of Ruifrok and Johnston, whose eosin is a pure magenta.
HEMATOXYLIN = (0.5626, 0.7201, 0.4062)
EOSIN = (0.2159, 0.8012, 0.5581)
_GLASS, _TISSUE = 0.04, 0.1  # mean optical density of the channels: up to the one glass, from the other on tissue


def recolour(
    x_bchw: torch.Tensor, h_gain: float, dab_gain: float, eosin_level: float, eosin_gain: float
) -> torch.Tensor:
    """Return IHC with hematoxylin and DAB as the H&E that it might have been; differentiable.

    With h, dab and r the concentrations of hematoxylin, DAB and what is orthogonal to both,
    hematoxylin = h_gain * h + dab_gain * dab and eosin = eosin_level * tissue + eosin_gain * r, where tissue rises from
    0 to 1 between the optical densities 0.04 (glass) and 0.1. No concentration becomes negative.

    Args:
        x_bchw: (N, 3, H, W) floats in [0, 1].
        h_gain: hematoxylin of the H&E per hematoxylin of the IHC.
        dab_gain: hematoxylin of the H&E per DAB; 0 leaves the marker out.
        eosin_level: eosin of tissue, in units of optical density.
        eosin_gain: eosin per residual: red and pink, which neither hematoxylin nor DAB explains.

    Returns:
        (N, 3, H, W) float32 in [0, 1]; white stays white.

    >>> import torch
    >>> white, brown = torch.ones(3), torch.tensor([0.5, 0.3, 0.2])
    >>> x_bchw = torch.stack([white, brown], 1)[None, :, None]
    >>> recolour(x_bchw, h_gain=1.5, dab_gain=0.2, eosin_level=0.2, eosin_gain=1.0)[0, :, 0].T.round(decimals=1)
    tensor([[1.0000, 1.0000, 1.0000],
            [0.6000, 0.5000, 0.6000]])
    """
    import torch

    # In float32 throughout: bfloat16 has too few digits for optical densities.
    with torch.autocast(x_bchw.device.type, enabled=False):
        h_b1hw, dab_b1hw, residual_b1hw = separate_batch(2 * x_bchw.float() - 1, _IHC_AND_RESIDUAL).split(1, dim=1)
        od_b1hw = -torch.log10(x_bchw.float().clamp(1 / 255, 1)).mean(1, keepdim=True)
        tissue_b1hw = ((od_b1hw - _GLASS) / (_TISSUE - _GLASS)).clamp(0, 1)
        hematoxylin_b1hw = h_gain * h_b1hw.relu() + dab_gain * dab_b1hw.relu()
        eosin_b1hw = (eosin_level * tissue_b1hw + eosin_gain * residual_b1hw).relu()
        return 10 ** -(hematoxylin_b1hw * _unit(HEMATOXYLIN, x_bchw) + eosin_b1hw * _unit(EOSIN, x_bchw))


def _unit(vector: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    """Return a stain vector of length 1 as (3, 1, 1) float32 on the device of a tensor."""
    import torch

    vector_c11 = torch.tensor(vector, device=like.device).view(3, 1, 1)
    return vector_c11 / vector_c11.norm()


# The residual points to where green is absorbed and red and blue are not, as eosin does.
_IHC_AND_RESIDUAL = (*IHC, tuple(np.cross(IHC[1], IHC[0]).tolist()))
