"""The hand-over to worker processes, which work on the maps of a network while it continues with the next images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import cv2

T = TypeVar("T")

MOST = 2**28  # bytes that wait for the workers; more would fill the memory


@dataclass
class Job:
    """Work whose result will be there later.

    Attributes:
        future: of the result.
        nbytes: of the data that the worker needs.
        settled: whether the result was collected.
    """

    future: Future[Any]
    nbytes: int
    settled: bool = False

    def done(self) -> bool:
        """Return whether the result is there."""
        return self.settled or self.future.done()

    def result(self) -> Any:
        """Wait for the result and return it, or raise the error of the work."""
        return self.future.result()


class Handover(Generic[T]):
    """Calls functions in worker processes, and returns the items with the results in the order they were added.

    The processes start with the first job, and again after `close`.

    Args:
        workers: processes, each with one thread; 0: a thread of this one.
        most: bytes that may wait for the workers.
    """

    def __init__(self, workers: int, most: int = MOST) -> None:
        self.workers = workers
        self.most = most
        self.pool: Executor | None = None
        self._waiting: deque[Job] = deque()
        self._pending: deque[tuple[T, Sequence[Job]]] = deque()

    def __len__(self) -> int:
        """Return the number of items that were not returned yet."""
        return len(self._pending)

    @property
    def nbytes(self) -> int:
        """Bytes that wait for the workers."""
        return sum(job.nbytes for job in self._waiting)

    def submit(self, function: Callable[..., Any], *arguments: Any, nbytes: int) -> Job:
        """Return the promise of a function's result.

        Args:
            function: can be sent to another process, and does not import torch, which would take seconds there.
            arguments: likewise.
            nbytes: of the arguments and everything else that waits with them.
        """
        if self.pool is None:
            self.pool = worker_pool(self.workers) if self.workers else ThreadPoolExecutor(1)
        job = Job(self.pool.submit(function, *arguments), nbytes)
        self._waiting.append(job)
        return job

    def wait(self) -> None:
        """Wait until the waiting bytes are within the limit, and forget finished jobs; raise the error of a job."""
        while self._waiting and (self._waiting[0].done() or self.nbytes > self.most):
            job = self._waiting.popleft()
            job.result()
            job.settled = True

    def add(self, item: T, jobs: Sequence[Job]) -> None:
        """Keep an item until its jobs are done."""
        self._pending.append((item, jobs))

    def ready(self, last: bool = False) -> Iterator[T]:
        """Yield the items whose jobs are done, in the order in which they were added; no item overtakes another.

        Args:
            last: wait for all.
        """
        self.wait()
        while self._pending and (last or all(job.done() for job in self._pending[0][1])):
            yield self._pending.popleft()[0]

    def close(self) -> None:
        """End the workers, and drop their jobs."""
        self._waiting.clear()
        self._pending.clear()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return worker processes; they are spawned, so CUDA and threads of this process do not matter.

    Args:
        workers: number of processes, each with one thread.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,))
