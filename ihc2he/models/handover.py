"""The hand-over to worker processes: what a network has found is worked on while it goes on with the next images."""

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
    """Work of which the result is promised.

    Attributes:
        future: of the result.
        nbytes: of what the worker needs for it.
        settled: whether it was waited for.
    """

    future: Future[Any]
    nbytes: int
    settled: bool = False

    def done(self) -> bool:
        """Return whether the result is there."""
        return self.settled or self.future.done()

    def result(self) -> Any:
        """Return the result, or raise what the work has raised; waits for it."""
        return self.future.result()


class Handover(Generic[T]):
    """Has functions called by worker processes, and gives back what belongs to the results in the order it was added.

    The processes start with the first job, and anew after `close`.

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
        """Return how many items have not been given back."""
        return len(self._pending)

    @property
    def nbytes(self) -> int:
        """What waits for the workers, bytes."""
        return sum(job.nbytes for job in self._waiting)

    def submit(self, function: Callable[..., Any], *arguments: Any, nbytes: int) -> Job:
        """Return the promise of what a function makes of arguments.

        Args:
            function: can be sent to another process, and imports no torch, which takes such a process seconds.
            arguments: likewise.
            nbytes: of the arguments and whatever else waits with them.
        """
        if self.pool is None:
            self.pool = worker_pool(self.workers) if self.workers else ThreadPoolExecutor(1)
        job = Job(self.pool.submit(function, *arguments), nbytes)
        self._waiting.append(job)
        return job

    def wait(self) -> None:
        """Wait until no more waits than may, and keep nothing of what is done; raise what a job has raised."""
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
        """End the workers, and forget what they were to do."""
        self._waiting.clear()
        self._pending.clear()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return worker processes; they are spawned, so CUDA and threads here do not matter.

    Args:
        workers: number of processes, each with one thread.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,))
