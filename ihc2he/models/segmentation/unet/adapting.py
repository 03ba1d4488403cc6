"""A light U-Net that adapts to unlabelled IHC beside labelled H&E: a mean teacher.

The student learns from the labels of H&E, and on IHC, seen in other colours, to find what its teacher finds there. The
teacher is a moving average of the student (Tarvainen and Valpola, NeurIPS 2017).
Shape suffixes: b = batch, c = colour, k = maps, as the decoder joins them, h, w = height, width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ihc2he.build import build
from ihc2he.errors import ConfigError, did_you_mean, require_setting
from ihc2he.losses.consistency import clear, consistency_losses, ramp
from ihc2he.models.pipeline.translators import Translator
from ihc2he.models.segmentation.unet.module import UNetSegmenter
from ihc2he.models.task import Export
from ihc2he.nuclei.decoders.base import Decoder
from ihc2he.nuclei.decoders.centres import CentresDecoder
from ihc2he.tiling.augmentation import mean
from ihc2he.tiling.resampling import resampled_size, resized


class AdaptedUNet(UNetSegmenter):
    """A `UNetSegmenter` whose training batches also hold `weak` and `strong`, two views of unlabelled IHC.

    The teacher's maps of the weak view, averaged over translations of it, are the targets of the student's maps of the
    strong view; see `consistency_losses`. The student sees H&E and IHC in one batch.

    Args:
        encoder: see `UNetSegmenter`.
        decoder: node or object of a `CentresDecoder`.
        optimizer: see `UNetSegmenter`.
        width: see `UNetSegmenter`.
        weight_unlabelled: of the loss on IHC; 0: the IHC is not looked at.
        ramp_steps: steps in which that weight grows to its full value.
        confidence: from which probability on the teacher is sure of nucleus or background.
        teacher_decay: share of the teacher that is kept in each step.
        teacher_views: names in `translators`: what the teacher sees of the IHC; its maps are averaged.
        translators: nodes of `Translator` by name.
        options: of `NucleiSegmenter`, the keyword-only ones.

    Raises:
        ConfigError: for a value outside its range, another decoder, or a translator that is not there.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        decoder: Mapping[str, Any] | Decoder,
        optimizer: Mapping[str, Any],
        width: int = 16,
        *,
        weight_unlabelled: float = 1.0,
        ramp_steps: int = 100,
        confidence: float = 0.9,
        teacher_decay: float = 0.99,
        teacher_views: Sequence[str] = ("none",),
        translators: Mapping[str, Mapping[str, Any]],
        **options: Any,
    ) -> None:
        require_setting("model", "weight_unlabelled", weight_unlabelled, weight_unlabelled >= 0, "0 or more")
        require_setting("model", "ramp_steps", ramp_steps, ramp_steps >= 0, "0 or more")
        require_setting("model", "confidence", confidence, 0.5 < confidence <= 1, "above 0.5 and up to 1")
        require_setting("model", "teacher_decay", teacher_decay, 0 <= teacher_decay <= 1, "from 0 to 1")
        require_setting("model", "teacher_views", teacher_views, bool(teacher_views), "one name or more, such as none")
        super().__init__(encoder, decoder, optimizer, width, **options)
        build(self.decoder, CentresDecoder)  # no other maps
        self.weight_unlabelled, self.ramp_steps = weight_unlabelled, ramp_steps
        self.confidence, self.teacher_decay = confidence, teacher_decay
        self.views = [_view(name, translators) for name in teacher_views]  # a list, so no checkpoint holds them
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def load_start(self, stage: str) -> bool:
        """Load the initial weights, also into the teacher; return whether there were any."""
        loaded = super().load_start(stage)
        self.teacher.load_state_dict(self.network.state_dict())
        return loaded

    def exports(self) -> dict[str, Export]:
        """Return the network, and with which terms it was trained."""
        (export,) = super().exports().values()
        return {"segmenter": Export(self.network, export.info | {"terms": {"unlabelled": self.weight_unlabelled}})}

    def on_fit_start(self) -> None:
        """Load the initial weights, and move translators to the device."""
        super().on_fit_start()
        self.views = [view.to(self.device).eval() for view in self.views]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of labelled H&E and unlabelled IHC.

        Raises:
            ConfigError: if there is no IHC in it; and as `NucleiSegmenter` does.
        """
        if not self.weight_unlabelled:
            return super().training_step(batch, batch_idx)
        if "weak" not in batch:
            msg = f"The training batches hold {', '.join(batch)}, and no unlabelled IHC. Pass data=adapting."
            raise ConfigError(msg)
        n = len(batch["image"])
        maps = self.network(self._in_format(torch.cat([self.seen(batch, batch_idx), batch["strong"]])))
        losses = self.losses_of({name: map_bchw[:n] for name, map_bchw in maps.items()}, batch)
        teacher_bkhw = self.teach(batch["weak"])
        unlabelled = consistency_losses(
            {name: map_bchw[n:] for name, map_bchw in maps.items()}, teacher_bkhw, self.confidence
        )
        weight = self.weight_unlabelled * ramp(self.global_step, self.ramp_steps)
        self.log("train/clear_share", clear(teacher_bkhw[:, 0], self.confidence).mean(), batch_size=n)
        return self._logged(losses | {f"unlabelled_{k}": weight * term for k, term in unlabelled.items()}, n)

    @torch.no_grad()
    def teach(self, x_bchw: Tensor) -> Tensor:
        """Return the teacher's joined maps of IHC, the mean over its views.

        Args:
            x_bchw: (N, 3, H, W) in [0, 1].
        """
        self.teacher.eval()
        h, w = x_bchw.shape[-2:]
        seen = []
        for view in self.views:
            size = (h, w) if view.mpp is None else resampled_size(h, w, self.mpp, view.mpp)
            seen += [resized(view(resized(x_bchw, *size), member), h, w) for member in range(view.members)]
        return mean([self.decoder.join(self.teacher(self._in_format(view_bchw))) for view_bchw in seen])

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Let the student learn, then move the teacher towards it."""
        super().optimizer_step(*arguments, **options)
        if self.weight_unlabelled:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        student = self.network.state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(student[name].to(value.dtype), 1 - self.teacher_decay)
            else:
                value.copy_(student[name])


def _view(name: str, translators: Mapping[str, Mapping[str, Any] | Translator]) -> Translator:
    if name not in translators:
        msg = f"model.teacher_views: there is no translator '{name}'.{did_you_mean(name, translators)}"
        raise ConfigError(msg)
    return build(translators[name], Translator)
