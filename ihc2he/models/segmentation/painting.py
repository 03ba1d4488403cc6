"""Training crops of H&E painted as IHC by a trained generator, on the device; crops that lose their nuclei stay H&E.

Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ihc2he.errors import ConfigError, require_setting
from ihc2he.losses.content import nuclear_correlation
from ihc2he.models.pipeline.translators import LearnedTranslator
from ihc2he.tiling.resampling import resampled_size, resized


class _ToIHC(LearnedTranslator):
    """A generator in the other direction."""

    stains = ("H&E", "IHC")


class NetworkPainter:
    """Paints a share of crops of H&E as IHC by the generator `g_he2ihc` of a CycleGAN or of CUT.

    A painted crop is used only if its nuclei are where they were, by `ihc2he.losses.content.nuclear_correlation`. It is
    no `nn.Module`, so nothing of it enters a checkpoint or an optimiser.

    Args:
        generator: bundle of the generator, a folder or a hub id; None: nothing is painted.
        share: of the crops that are to be painted.
        least_correlation: of the nuclear stain of a crop and of its painting.
        dab: how much DAB counts as nuclear stain: 1 for nuclear markers, 0 for others.
        seed: of the draws.

    Raises:
        ConfigError: for a value outside its range, or a generator that is no bundle.
    """

    def __init__(
        self,
        generator: str | None = None,
        share: float = 0.5,
        least_correlation: float = 0.5,
        dab: float = 1.0,
        seed: int = 0,
    ) -> None:
        require_setting("model.paint", "share", share, 0 <= share <= 1, "from 0 to 1")
        holds = -1 <= least_correlation <= 1
        require_setting("model.paint", "least_correlation", least_correlation, holds, "from -1 to 1")
        require_setting("model.paint", "dab", dab, dab >= 0, "0 or more")
        if generator is not None and generator.endswith(".ckpt"):
            msg = f"model.paint.generator={generator}: expected a bundle, such as RUN/bundles/g_he2ihc."
            raise ConfigError(msg)
        self.generator, self.share, self.least_correlation = generator, share if generator else 0.0, least_correlation
        self.dab, self.seed = dab, seed
        self._network: _ToIHC | None = None

    def prepare(self, device: torch.device | str) -> None:
        """Load the generator, if there is one.

        Raises:
            ConfigError: if it is no translator from H&E to IHC.
            DataError: if it cannot be read.
        """
        if self.share and self._network is None:
            self._network = _ToIHC(self.generator)
        if self._network is not None:
            self._network.to(device).eval()

    def draw(self, n: int, epoch: int, batch: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Return which of n crops of a process are to be painted, (N,) bool.

        Processes share the draws of one batch as they share its crops, so several do what one does.

        >>> one, two = (NetworkPainter("x").draw(2, 0, 0, rank, 2).tolist() for rank in (0, 1))
        >>> [one[0], two[0], one[1], two[1]] == NetworkPainter("x").draw(4, 0, 0).tolist()
        True
        """
        draws = np.random.default_rng((self.seed, epoch, batch)).random(n * world_size)
        return torch.from_numpy(draws[rank::world_size] < self.share)

    @torch.no_grad()
    def __call__(self, x_bchw: Tensor, drawn_b: Tensor, mpp: float) -> tuple[Tensor, Tensor]:
        """Return crops, some of them painted, and which are, (N,) bool.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1].
            drawn_b: which are to be painted.
            mpp: um/px; crops are resampled to that of the generator and back.

        Raises:
            ConfigError: before `prepare`.
        """
        if not drawn_b.any():
            return x_bchw, drawn_b
        if self._network is None or self._network.mpp is None:
            msg = f"model.paint.generator={self.generator} is not loaded yet. Call prepare() before painting."
            raise ConfigError(msg)
        he_bchw = x_bchw[drawn_b]
        h, w = x_bchw.shape[-2:]
        size = resampled_size(h, w, mpp, self._network.mpp)
        ihc_bchw = resized(self._network(resized(he_bchw, *size)), h, w)
        kept_b = nuclear_correlation(2 * ihc_bchw - 1, 2 * he_bchw - 1, self.dab) >= self.least_correlation
        painted_b = drawn_b.clone()
        painted_b[drawn_b] = kept_b
        made_bchw = x_bchw.clone()
        made_bchw[painted_b] = ihc_bchw[kept_b].to(x_bchw.dtype)
        return made_bchw, painted_b
