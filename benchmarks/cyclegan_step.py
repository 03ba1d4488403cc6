"""Times one training step of our CycleGAN against the published one's.

    python benchmarks/cyclegan_step.py [size=64] [steps=5]

`ReferenceStep` is a transcription, from the description in the paper and its public code, of the reference step: its
networks, losses, optimisers and order of calls, in float32 and the default memory format. Ours runs inside the Trainer,
so that what Lightning costs is counted. Steps alternate, so that other load on the machine falls on both. Times are
those on the wall, since a GPU may do the work.
"""

from __future__ import annotations

import itertools
import logging
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from timing import argument, finish, ratios
from torch import Tensor, nn

from ihc2he.models.cyclegan.module import CycleGAN
from ihc2he.models.cyclegan.networks import initialise
from ihc2he.models.cyclegan.pool import ImagePool


class ReferenceBlock(nn.Module):
    """A residual block of the reference generator."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*first, nn.ReflectionPad2d(1), nn.Conv2d(256, 256, 3), nn.InstanceNorm2d(256))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x_bchw + self.conv_block(x_bchw)


def reference_generator() -> nn.Sequential:
    """Return the reference generator, `resnet_9blocks`."""

    def norm(width: int) -> list[nn.Module]:
        return [nn.InstanceNorm2d(width), nn.ReLU(True)]

    net = nn.Sequential(
        *[nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), *norm(64)],
        *[nn.Conv2d(64, 128, 3, 2, 1), *norm(128), nn.Conv2d(128, 256, 3, 2, 1), *norm(256)],
        *[ReferenceBlock() for _ in range(9)],
        *[nn.ConvTranspose2d(256, 128, 3, 2, 1, 1), *norm(128), nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), *norm(64)],
        *[nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.Tanh()],
    )
    initialise(net)
    return net


def reference_discriminator() -> nn.Sequential:
    """Return the reference discriminator, `basic`."""
    net = nn.Sequential(
        *[nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(64, 128, 4, 2, 1), nn.InstanceNorm2d(128), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(128, 256, 4, 2, 1), nn.InstanceNorm2d(256), nn.LeakyReLU(0.2, True)],
        *[nn.Conv2d(256, 512, 4, 1, 1), nn.InstanceNorm2d(512), nn.LeakyReLU(0.2, True)],
        nn.Conv2d(512, 1, 4, 1, 1),
    )
    initialise(net)
    return net


class ReferenceStep:
    """Both generators and discriminators of the reference, and `step`, which trains them on one pair of images."""

    def __init__(self, device: torch.device) -> None:
        self.g_a, self.g_b = reference_generator().to(device), reference_generator().to(device)
        self.d_a, self.d_b = reference_discriminator().to(device), reference_discriminator().to(device)
        self.pools = ImagePool(50), ImagePool(50)
        generators = itertools.chain(self.g_a.parameters(), self.g_b.parameters())
        discriminators = itertools.chain(self.d_a.parameters(), self.d_b.parameters())
        self.opt_g = torch.optim.Adam(generators, 2e-4, (0.5, 0.999))
        self.opt_d = torch.optim.Adam(discriminators, 2e-4, (0.5, 0.999))
        self.mse, self.l1 = nn.MSELoss(), nn.L1Loss()

    def step(self, real_a: Tensor, real_b: Tensor) -> None:
        """Train on one image of each domain."""
        fake_b = self.g_a(real_a)
        rec_a = self.g_b(fake_b)
        fake_a = self.g_b(real_b)
        rec_b = self.g_a(fake_a)
        self._require_grad(False)
        self.opt_g.zero_grad()
        loss = 5 * self.l1(self.g_a(real_b), real_b) + 5 * self.l1(self.g_b(real_a), real_a)
        loss = loss + self._gan(self.d_a(fake_b), 1) + self._gan(self.d_b(fake_a), 1)
        loss = loss + 10 * self.l1(rec_a, real_a) + 10 * self.l1(rec_b, real_b)
        loss.backward()
        self.opt_g.step()
        self._require_grad(True)
        self.opt_d.zero_grad()
        domains = ((self.d_a, real_b, fake_b, self.pools[0]), (self.d_b, real_a, fake_a, self.pools[1]))
        for d, real, fake, pool in domains:
            loss_d = 0.5 * (self._gan(d(real), 1) + self._gan(d(pool.query(fake)), 0))
            loss_d.backward()
        self.opt_d.step()

    def _gan(self, logits: Tensor, target: float) -> Tensor:
        return self.mse(logits, torch.tensor(float(target), device=logits.device).expand_as(logits))

    def _require_grad(self, value: bool) -> None:
        for parameter in itertools.chain(self.d_a.parameters(), self.d_b.parameters()):
            parameter.requires_grad = value


class Alternate(Callback):
    """Runs a reference step before each of ours and times both, in seconds."""

    def __init__(self) -> None:
        self.reference: ReferenceStep | None = None
        self.seconds: dict[str, list[float]] = {"published": [], "ours": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Time the reference step, then start the clock of ours."""
        self.reference = self.reference or ReferenceStep(pl_module.device)
        started = _now()
        with torch.autocast(pl_module.device.type, enabled=False):
            self.reference.step(batch["ihc"], batch["he"])
        self.seconds["published"].append(_now() - started)
        self.started = _now()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock of our step."""
        self.seconds["ours"].append(_now() - self.started)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(size: int, steps: int, precision: Any) -> dict[str, list[float]]:
    """Return the seconds of each step after two to warm up, `published` and `ours`."""
    ours = CycleGAN(
        {"_target_": "ihc2he.models.cyclegan.networks.ResnetGenerator"},
        {"_target_": "ihc2he.models.cyclegan.networks.PatchDiscriminator"},
        {"_target_": "torch.optim.Adam", "lr": 2e-4, "betas": [0.5, 0.999], "fused": True},
    )
    clock = Alternate()
    images = [{stain: torch.rand(3, size, size) * 2 - 1 for stain in ("ihc", "he")} for _ in range(steps + 2)]
    trainer = Trainer(
        accelerator="auto", devices=1, max_epochs=1, precision=precision, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ours, torch.utils.data.DataLoader(images, batch_size=1))  # type: ignore[arg-type]
    return {name: seconds[2:] for name, seconds in clock.seconds.items()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    size, steps = argument("size", 64), argument("steps", 5)
    rows = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        case = f"{size} px, {precision}, {torch.get_num_threads()} threads"
        rows += ratios(case, measure(size, steps, precision), {"published": "published in 32-true"})
    finish("cyclegan_step", rows)
