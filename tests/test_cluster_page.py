"""What the page on clusters says: its command lines compose, and its figures of memory are right."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
from ihc2he.models.translation.cyclegan.module import CycleGAN

DOCS = Path(__file__).parents[1] / "docs" / "cluster.md"
KNOWN = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_GPUS_ON_NODE": "4",
    "HEAD": "n0",
}


def documented():
    """Return the arguments of every command line on the page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        before, name, after = line.partition("-m ihc2he.train ")
        if name and not before.lstrip().startswith("#"):
            text = re.sub(r"\$\{?(\w+)\b(?!:)\}?", lambda match: KNOWN[match[1]], after)
            found.append(shlex.split(text, comments=True))
    return found


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_every_command_line_of_the_page_composes(arguments, cli):
    single = [a if "[" in a else a.split(",")[0] for a in arguments if a not in ("-m", "ckpt_path=last", "&")]
    sweep = [a for a in single if not a.startswith(("launcher=", "hydra.launcher."))]  # plugins may be missing
    done = cli("--cfg", "job", *sweep)
    assert done.status == 0, done.err


def test_the_page_shows_command_lines():
    assert len(documented()) >= 8


def kept_for_backward(module, forward):
    """Return the bytes of what autograd keeps of a forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result is not None
    return sum(size for size, _ in kept.values())


@pytest.mark.slow
def test_the_figures_of_memory_on_the_page_are_right():
    page = DOCS.read_text(encoding="utf-8")
    networks = "ihc2he.models.translation.cyclegan.networks"
    gan = CycleGAN(
        generator={"_target_": f"{networks}.ResnetGenerator"},
        discriminator={"_target_": f"{networks}.PatchDiscriminator"},
        optimizer={"_target_": "torch.optim.Adam"},
    )
    for d in (gan.d_he, gan.d_ihc):
        d.requires_grad_(False)  # as in the generators' step
    x = torch.rand(1, 3, 256, 256)
    shown = [(gan, kept_for_backward(gan, lambda: gan.generator_losses({"ihc": x, "he": x})))]
    node = {"_target_": "ihc2he.models.segmentation.encoders.PreactResNet"}
    segmenter = HoverNetSegmenter(
        encoder=node, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1}, classes=list("abcde")
    )
    inst = torch.zeros(1, 256, 256, dtype=torch.int64)
    inst[:, 4:10, 6:20] = 1
    batch = {"image": torch.rand(1, 3, 256, 256), "inst": inst, "hv": torch.rand(1, 2, 256, 256), "type": inst}
    segmenter.log = segmenter.log_dict = lambda *_, **__: None
    shown.append((segmenter, kept_for_backward(segmenter, lambda: segmenter.training_step(batch, 0))))
    for module, activations in shown:
        n = sum(parameter.numel() for parameter in module.parameters())
        assert all(f"{figure:,}" in page for figure in (n, 4 * n, 8 * n, 16 * n)), n
        assert f"{activations / 1e9:.2f} GB" in page, activations
