"""A program that runs the real command line in processes that it kills: `python killing.py KIND,KIND... ARGUMENT...`.

Each process is a fork of this one, which has imported everything once, so that a kill costs a second or two. It runs
the command line until the first kind of kill strikes, then again until the second does, and at last to its end. Prints
a line of JSON for each process: the kind, and the exit status (-9: killed). Kinds:

- `store:N`, `step:N`, `validation:N`, `checkpoint:N`: at the Nth tile written to a store, optimiser step (in CycleGAN
  half of a batch's), validation batch, or in the middle of the Nth checkpoint's bytes;
- `after:S`: S seconds after the start, wherever that is;
- `term:N`: SIGTERM instead, at the Nth optimiser step.
"""

import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

USED = (
    "callbacks.finetuning", "callbacks.panels", "callbacks.results", "callbacks.seeding", "data.bci", "data.pannuke",
    "models.translation.cyclegan.module", "models.segmentation.hovernet.module", "runner", "simulate.bci",
    "simulate.pannuke", "train",
)  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, sent: int = signal.SIGKILL) -> None:
    """Make the process get a signal at the call of this number to a method, before it does anything."""
    original, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), sent)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def in_the_middle_of_a_checkpoint(number: int) -> None:
    import torch

    original, calls = torch.save, iter(range(1, sys.maxsize))

    def half(content: Any, stream: Any) -> None:
        if next(calls) < number:
            original(content, stream)
            return
        whole = io.BytesIO()
        original(content, whole)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        die()

    torch.save = half


def arm(kind: str, number: int) -> None:
    import h5py
    import torch

    from ihc2he.models.segmentation.hovernet.module import HoverNetSegmenter
    from ihc2he.models.translation.cyclegan.module import CycleGAN

    if kind == "checkpoint":
        in_the_middle_of_a_checkpoint(number)
    elif kind == "store":
        at_call(h5py.Group, "create_dataset", number)
    elif kind == "step":
        at_call(torch.optim.Adam, "step", number)
    elif kind == "term":
        at_call(torch.optim.Adam, "step", number, signal.SIGTERM)
    elif kind == "validation":
        at_call(CycleGAN, "validation_step", number)
        at_call(HoverNetSegmenter, "validation_step", number)


def in_a_fork(work: Callable[[], None], after: float | None) -> int:
    """Return the exit status of a fork that does some work, and is killed after some seconds."""
    pid = os.fork()
    if pid == 0:
        log = os.open("killing.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            work()
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            os._exit(status)
    if after is not None:
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            if (done := os.waitpid(pid, os.WNOHANG))[0]:
                return os.waitstatus_to_exitcode(done[1])
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    kinds = [kind for kind in sys.argv[1].split(",") if kind]
    sys.argv = ["ihc2he", *sys.argv[2:]]
    for name in USED:
        importlib.import_module(f"ihc2he.{name}")
    for kind in [*kinds, "none:0"]:
        what, _, number = kind.partition(":")

        def work(what: str = what, number: str = number) -> None:
            arm(what, int(float(number)))
            sys.modules["ihc2he.train"].main()

        status = in_a_fork(work, float(number) if what == "after" else None)
        print(json.dumps({"kind": kind, "status": status}), flush=True)
        if status == 0:  # ended before the kill struck
            break


if __name__ == "__main__":
    main()
