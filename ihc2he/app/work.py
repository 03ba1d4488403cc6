"""Who uses the page, what each has open, and the queue of the one worker that runs the networks."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from ihc2he.errors import ConfigError, Ihc2heError

log = logging.getLogger(__name__)

KEPT = 4  # images and fields of a session; the oldest goes first
MOST_BYTES = 2**32  # of the images and fields of all sessions; those of which nothing was heard for longest go first
MOST_SESSIONS = 64
MOST_JOBS = 32  # that wait

T = TypeVar("T")


def new_id() -> str:
    """Return a name that cannot be guessed."""
    return secrets.token_urlsafe(16)


class StoppedError(Exception):
    """Nobody waits for the result any more."""


@dataclass
class Job:
    """Work that is done in its turn.

    Attributes:
        id: in addresses.
        state: `waiting`, `running`, `done`, `failed` or `stopped`.
        done: parts that are finished.
        total: all parts; 0: not known yet.
        result: for the page, once it is done.
        error: why it failed.
        about: id of the image that it is about.
    """

    id: str = field(default_factory=new_id)
    state: str = "waiting"
    done: int = 0
    total: int = 0
    result: Any = None
    error: str = ""
    about: str = ""

    def stop(self) -> None:
        """Let it end as soon as it can."""
        if self.state in ("waiting", "running"):
            self.state = "stopped"

    def say(self, done: int, total: int) -> None:
        """Note the progress.

        Raises:
            StoppedError: if it was stopped.
        """
        if self.state == "stopped":
            raise StoppedError
        self.done, self.total = done, total


class Queue:
    """One worker, which takes jobs in the order in which they came."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "networks")
        self._open: list[Job] = []  # that wait or run
        self._lock = Lock()

    def add(self, work: Callable[[Job], Any], about: str = "") -> Job:
        """Return the job of some work, which is given the job to note its progress.

        Args:
            work: to do.
            about: id of an image.

        Raises:
            ConfigError: if too many wait.
        """
        job = Job(about=about)
        with self._lock:
            self._open = [one for one in self._open if one.state in ("waiting", "running")]
            if sum(one.state == "waiting" for one in self._open) >= MOST_JOBS:
                msg = f"{MOST_JOBS} others are waiting for the network. Try again in a while."
                raise ConfigError(msg)
            self._open.append(job)
        self._pool.submit(self._run, job, work)
        return job

    def before(self, job: Job) -> int:
        """Return how many wait before a job."""
        with self._lock:
            waiting = [one for one in self._open if one.state == "waiting"]
        return waiting.index(job) if job in waiting else 0

    def close(self) -> None:
        """Stop all jobs."""
        for job in self._open:
            job.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _run(job: Job, work: Callable[[Job], Any]) -> None:
        if job.state == "stopped":
            return
        job.state = "running"
        try:
            result = work(job)
            if job.state == "running":
                job.result, job.state = result, "done"
        except StoppedError:
            job.state = "stopped"
        except Ihc2heError as error:
            job.error, job.state = str(error), "failed"
        except Exception as error:
            log.exception("A job failed.")
            job.error, job.state = f"The program failed ({type(error).__name__}: {error}).", "failed"


@dataclass(eq=False)
class Session:
    """What one browser has open.

    Attributes:
        images: `ihc2he.app.images.Opened` by id.
        fields: `ihc2he.app.analysis.Field` by id, with what the page draws of its translation.
        jobs: by id.
        seen: when it was last heard of, in seconds.
    """

    images: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)

    def keep(self, shelf: dict[str, T], key: str, item: T) -> None:
        """Put something on a shelf, and drop what is too old."""
        shelf[key] = item
        for old in list(shelf)[:-KEPT]:
            dropped = shelf.pop(old, None)
            if isinstance(dropped, Job):
                dropped.stop()

    @property
    def nbytes(self) -> int:
        """Memory that its images and fields take."""
        return sum(item.nbytes for item in (*self.images.values(), *self.fields.values()))


class Sessions:
    """All sessions, which end some time after their page was last heard of.

    Args:
        keep_minutes: how long what they have open is kept.
    """

    def __init__(self, keep_minutes: float) -> None:
        self._keep = 60 * keep_minutes
        self._all: dict[str, Session] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: str | None) -> tuple[str, Session]:
        """Return the session of a key, or a new one with its key."""
        with self._lock:
            if key is None or key not in self._all:
                key = new_id()
                self._all[key] = Session()
            self._all[key].seen = time.monotonic()
            for old in sorted(self._all, key=lambda one: self._all[one].seen)[:-MOST_SESSIONS]:
                self._end(old)
            return key, self._all[key]

    def sweep(self) -> None:
        """End the sessions of which nothing was heard for long."""
        with self._lock:
            for key in [key for key, one in self._all.items() if time.monotonic() - one.seen > self._keep]:
                self._end(key)

    def trim(self, most: int = MOST_BYTES) -> None:
        """End the sessions that were longest quiet, until the others fit into the memory."""
        with self._lock:
            by_age = sorted(self._all, key=lambda one: self._all[one].seen)
            for key in by_age[:-1]:
                if sum(one.nbytes for one in self._all.values()) <= most:
                    break
                self._end(key)

    def _end(self, key: str) -> None:
        for job in self._all.pop(key).jobs.values():
            job.stop()
