"""PatchNCE as a term of any model of translation: patches are compared in the features of its generator.

Shape suffixes: b = image, n = patch, c = channel or feature, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from numpy.random import Generator
from torch import Tensor, nn

from ihc2he.losses.patchnce import adaptive_weights, patchnce
from ihc2he.models.translation.cyclegan.networks import initialise
from ihc2he.models.translation.module import require

_PROBE = 64  # px, of the image by which the numbers of channels are found


class PatchContrast(nn.Module):
    """The heads of CUT (its network F) and the loss on them.

    For each compared layer a head of two linear layers maps the features of a patch. The reference makes the heads at
    the first step and gives them an optimiser of their own. Here they exist from the start, and the optimiser of the
    generators steps them too, which for Adam is the same. So checkpoints and all processes have them. Features are
    taken without dropout, or a place would hardly resemble itself.

    Args:
        generator: whose features are compared; it is not kept.
        layers: which, by index in the generator's Sequential `model`.
        n_patches: places per image and layer.
        temperature: of the contrast.
        width: features of a patch.
        key: of the layers in the configuration, for messages.

    Raises:
        ConfigError: for a value outside its range, or a generator without such layers.
    """

    def __init__(
        self,
        generator: nn.Module,
        layers: Sequence[int] = (0, 4, 8, 12, 16),
        n_patches: int = 256,
        temperature: float = 0.07,
        width: int = 256,
        key: str = "layers",
    ) -> None:
        super().__init__()
        require("n_patches", n_patches, n_patches >= 2, "2 or more")
        require("temperature", temperature, temperature > 0, "above 0")
        model = getattr(generator, "model", None)
        n_layers = len(model) if isinstance(model, nn.Sequential) else 0
        fit = bool(layers) and all(0 <= layer < n_layers for layer in layers)
        kind = type(generator).__name__
        has = f"indices from 0 to {n_layers - 1}" if n_layers else "a generator with its layers in a Sequential `model`"
        require(key, list(layers), fit, f"{has}, for {kind}")
        self.layers = sorted(set(layers))
        self.n_patches, self.temperature = n_patches, temperature
        with torch.no_grad():
            channels = [x.shape[1] for x in self._features(generator, torch.zeros(1, 3, _PROBE, _PROBE))]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels
        )
        initialise(self.heads, "xavier")

    def forward(
        self,
        generator: nn.Module,
        source_bchw: Tensor,
        made_bchw: Tensor,
        draws: Generator,
        flipped: bool = False,
        trust: float | None = None,
    ) -> Tensor:
        """Return the mean loss over layers, images and patches; scalar, float32.

        Args:
            generator: of the features.
            source_bchw: images that give the keys, without gradient.
            made_bchw: images that give the queries.
            draws: of the places, which are the same in all images of a batch.
            flipped: the made images are mirrored left to right; their features are mirrored back.
            trust: in pairs that may be misaligned, see `adaptive_weights`; None: all patches count equally.
        """
        with torch.no_grad():
            sources = self._features(generator, source_bchw)
        losses = []
        for head, source, made in zip(self.heads, sources, self._features(generator, made_bchw), strict=True):
            n = source[0, 0].numel()
            places = torch.from_numpy(draws.choice(n, min(n, self.n_patches), replace=False)).to(source.device)
            with torch.no_grad():
                key_bnc = head(_patches(source, places))
            query_bnc = head(_patches(made.flip(-1) if flipped else made, places))
            loss_bn = patchnce(query_bnc, key_bnc, self.temperature)
            if trust is not None:
                loss_bn = loss_bn * adaptive_weights(query_bnc, key_bnc, trust)
            losses.append(loss_bn.mean())
        return torch.stack(losses).mean()

    def _features(self, generator: nn.Module, x_bchw: Tensor) -> list[Tensor]:
        """Return what the layers make of images, each (B, C, H, W)."""
        found = []
        model: nn.Sequential = generator.model  # type: ignore[assignment]  # checked
        with _without_dropout(generator):
            for i, layer in enumerate(model[: self.layers[-1] + 1]):
                x_bchw = layer(x_bchw)
                if i in self.layers:
                    found.append(x_bchw)
        return found


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    active = [layer for layer in network.modules() if isinstance(layer, nn.Dropout) and layer.training]
    for layer in active:
        layer.eval()
    try:
        yield
    finally:
        for layer in active:
            layer.train()


def _patches(x_bchw: Tensor, places_n: Tensor) -> Tensor:
    """Return the features at some places, (B, N, C)."""
    return x_bchw.permute(0, 2, 3, 1).flatten(1, 2)[:, places_n]
