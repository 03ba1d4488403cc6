"""What a page may do, and what it shares between all who use it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from ihc2he.app.analysis import Networks
from ihc2he.app.tuning import Tuning
from ihc2he.app.work import Queue, Sessions
from ihc2he.files import restore


@dataclass
class Settings:
    """What the page may do.

    Attributes:
        networks: that it uses.
        host: where it is served.
        token: that is needed; None: none.
        path: folder of images and slides that it may open.
        out: folder that corrections are saved in; None: nowhere.
        upload_mb: largest upload.
        upload_s: longest time of one.
        keep_minutes: how long results are kept that nobody looks at.
        tuning: further settings of fine-tuning.
    """

    networks: Networks
    host: str = "127.0.0.1"
    token: str | None = None
    path: Path | None = None
    out: Path | None = None
    upload_mb: float = 256
    upload_s: float = 120
    keep_minutes: float = 30
    tuning: tuple[str, ...] = ()
    sessions: Sessions = field(init=False)
    queue: Queue = field(init=False, default_factory=Queue)
    tuned: Tuning | None = field(init=False, default=None)
    starting: Lock = field(init=False, default_factory=Lock)  # of a fine-tuning
    run: str = field(init=False, default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.keep_minutes)
        self.out = self.out and self.out.expanduser().resolve()
        if self.corrections is not None:
            restore(self.corrections)

    @property
    def corrections(self) -> Path | None:
        """The folder of the corrected tiles."""
        return None if self.out is None else self.out / "tiles"
