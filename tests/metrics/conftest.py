import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

RANK = """
import sys, torch
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
"""


@pytest.fixture
def on_two_ranks(tmp_path) -> Callable[[str], list]:
    """Run a script on two gloo processes and return the `result` that each ends with.

    The script sees `rank` and `torch`. Scripts rather than functions, because a spawned process cannot import test
    modules under --import-mode=importlib.
    """

    def run(script: str) -> list:
        code = RANK + script + "\ntorch.save(result, f'{folder}/{rank}.pt')\ntorch.distributed.destroy_process_group()"
        ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)]) for rank in (0, 1)]
        try:
            assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
        finally:
            for rank in ranks:
                rank.kill()
        return [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    return run


@pytest.fixture(scope="session")
def pair() -> tuple[Tensor, Tensor]:
    """Return two RGB images with structure, flat parts and fine noise, (2, 3, 168, 180), and both disturbed."""
    generator = torch.Generator().manual_seed(0)
    coarse_bchw = torch.rand(2, 3, 12, 12, generator=generator)
    image_bchw = torch.nn.functional.interpolate(coarse_bchw, (168, 180), mode="bilinear")
    image_bchw[..., :40, :] = 0.94
    image_bchw = image_bchw + 0.01 * torch.randn(image_bchw.shape, generator=generator)
    noise_bchw = 0.05 * torch.randn(image_bchw.shape, generator=generator)
    return image_bchw.clamp(0, 1), (image_bchw + noise_bchw).clamp(0, 1)
