"""The addresses of the page: images, tiles, analyses, corrections, files, fine-tuning."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ihc2he import __version__
from ihc2he.app.analysis import REGION_PX, Field, analyse
from ihc2he.app.editing import in_image as placed
from ihc2he.app.editing import measured
from ihc2he.app.guard import SESSION, Guard, SessionCookie, cookie_name
from ihc2he.app.images import Layers, Locked, Opened, listed, open_below, read_upload, tile
from ihc2he.app.requests import checked_mpp, corrected_by, json_of, numbers, region_of, stream_to
from ihc2he.app.results import KINDS, as_file, drawable, of_field
from ihc2he.app.sample import draw_sample
from ihc2he.app.saving import check_classes, save, tiles
from ihc2he.app.settings import Settings
from ihc2he.app.tuning import Tuning, command, compared, shown, trainable
from ihc2he.app.work import Job, Session, new_id
from ihc2he.errors import ConfigError, DataError, Ihc2heError
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.nuclei.counts import THRESHOLDS

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_SWEEP_S = 30  # between looks for sessions to end

T = TypeVar("T")


class Page:
    """The answers to requests.

    Args:
        settings: of the page.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._decoding = asyncio.Semaphore(2)

    def session(self, request: Request) -> Session:
        """Return who asks; a new session gets a cookie with the answer."""
        if not hasattr(request.state, "session"):
            known = request.cookies.get(cookie_name(SESSION, request.headers))
            key, request.state.session = self.settings.sessions.get(known)
            request.state.new_key = None if key == known else key
        return request.state.session

    # ------------------------------------------------------------------ what there is

    def index(self, request: Request) -> Response:
        """Return the page."""
        self.session(request)
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    def start(self, request: Request) -> Response:
        """Return what the page offers; it also tells the server that somebody is still there."""
        self.session(request)
        own = self.settings
        folder = own.corrections
        saved = len(tiles(folder)) if folder else 0
        return JSONResponse(
            {
                "run": own.run, "version": __version__, "translators": own.networks.names,
                "classes": list(own.networks.segmenter.classes), "thresholds": list(THRESHOLDS),
                "files": own.path is not None, "save": str(folder) if folder else None,
                "trainable": trainable(own.networks), "upload_mb": own.upload_mb, "region_px": REGION_PX,
                "mpp": own.networks.segmenter.mpp, "weights": own.networks.weights,
                "saved": saved, "command": shown(command(folder, own.networks)) if folder and saved else None,
                "tuning": own.tuned.status() if own.tuned else None,
            }
        )  # fmt: skip

    def files(self, request: Request) -> Response:
        """Return the images and slides that can be opened."""
        self.session(request)
        own = self.settings
        return JSONResponse(listed(own.path, own.out) if own.path else [])

    # ------------------------------------------------------------------ images

    async def upload(self, request: Request) -> Response:
        """Open an image that the page sends as the body of the request."""
        session = self.session(request)
        name = re.sub(r"[^\w .()+-]", "_", Path(request.query_params.get("name", "")).name)[-60:].lstrip(".") or "image"
        most = int(self.settings.upload_mb * 2**20)
        with TemporaryDirectory(prefix="ihc2he-app-") as folder:
            path = Path(folder) / name
            try:
                async with asyncio.timeout(self.settings.upload_s):
                    await stream_to(request, path, most)
            except TimeoutError:
                msg = f"{name}: the upload took longer than {self.settings.upload_s:g} s. Open it from a folder: path=."
                raise DataError(msg) from None
            async with self._decoding:
                source = await run_in_threadpool(read_upload, path)
        return JSONResponse(self._open(session, name, source).facts())

    async def open(self, request: Request) -> Response:
        """Open an image or slide of the folder."""
        session = self.session(request)
        given = await json_of(request)
        name = given.get("file")
        if self.settings.path is None or not isinstance(name, str):
            msg = "This page has no folder of images; start it with path=FOLDER."
            raise ConfigError(msg)
        source = await run_in_threadpool(open_below, self.settings.path, name)
        return JSONResponse(self._open(session, Path(name).name, source).facts())

    async def sample(self, request: Request) -> Response:
        """Open simulated tissue."""
        session = self.session(request)
        source = await run_in_threadpool(draw_sample)
        return JSONResponse(self._open(session, source.name, source).facts())

    def _open(self, session: Session, name: str, source: ImageSource) -> Opened:
        locked = Locked(source)
        locked.name = name
        opened = Opened(new_id(), name, locked, Layers(locked))
        session.keep(session.images, opened.id, opened)
        self.settings.sessions.trim()
        return opened

    def tile(self, request: Request) -> Response:
        """Return a tile of an image, or of the virtual H&E of a field."""
        session, place = self.session(request), request.path_params
        if place["what"] == "images":
            layers = _of(session.images, place["id"], "image").layers
        else:
            layers = _of(session.fields, place["id"], "result").layers
        found = layers and tile(layers, place["level"], place["column"], place["row"])
        if not found:
            raise HTTPException(404, "There is no such tile.")
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600, immutable"})

    # ------------------------------------------------------------------ analyses

    async def analyse(self, request: Request) -> Response:
        """Queue the analysis of an image or a part of it."""
        session = self.session(request)
        image: Opened = _of(session.images, request.path_params["id"], "image")
        given = await json_of(request)
        mpp, region = checked_mpp(given.get("mpp")), region_of(given.get("region"))
        translator = given.get("translator", "none")
        if translator not in self.settings.networks.names:
            msg = f"There is no translator {translator!r}."
            raise ConfigError(msg)

        def work(job: Job) -> str:
            found = analyse(self.settings.networks, image.source, mpp, translator, region, job.say)
            key = new_id()
            session.keep(session.fields, key, ShownField(found))
            self.settings.sessions.trim()
            return key

        for job in list(session.jobs.values()):
            if job.about == image.id:  # nobody waits for its result any more
                job.stop()
        return self._queued(session, work, image.id)

    def _queued(self, session: Session, work: Callable[[Job], Any], about: str = "") -> Response:
        job = self.settings.queue.add(work, about)
        session.keep(session.jobs, job.id, job)
        return JSONResponse({"job": job.id}, 202)

    def job(self, request: Request) -> Response:
        """Return how far a job is."""
        job = _of(self.session(request).jobs, request.path_params["id"], "job")
        before = self.settings.queue.before(job)
        return JSONResponse(
            {"state": job.state, "done": job.done, "total": job.total, "before": before, "error": job.error,
             "result": job.result}
        )  # fmt: skip

    def stop(self, request: Request) -> Response:
        """Stop a job."""
        _of(self.session(request).jobs, request.path_params["id"], "job").stop()
        return Response(status_code=204)

    def field(self, request: Request) -> Response:
        """Return what was found."""
        return JSONResponse(of_field(self._field(request)))

    def _field(self, request: Request) -> Field:
        return _of(self.session(request).fields, request.path_params["id"], "result").field

    async def edits(self, request: Request) -> Response:
        """Return the nuclei that corrections add, without those that the page knows already."""
        found = self._field(request)
        given = await json_of(request)

        def added() -> dict[str, Any]:
            now = corrected_by(found, given)
            known = given.get("known", 0)
            new = [number for number in now.added if not isinstance(known, int) or number > known]
            return drawable(placed(measured(found, now, new), found))

        return JSONResponse(await run_in_threadpool(added))

    async def file(self, request: Request) -> Response:
        """Return a file to keep."""
        found, kind = self._field(request), request.path_params["kind"]
        given = await json_of(request)

        def content() -> bytes:
            thresholds, least = numbers(given.get("thresholds"), 3), numbers([given.get("least_score")], 1)[0]
            return as_file(kind, found, corrected_by(found, given), thresholds, least)

        made = await run_in_threadpool(content)
        return Response(made, media_type=KINDS[kind])

    # ------------------------------------------------------------------ corrections

    async def save(self, request: Request) -> Response:
        """Save the corrected nuclei of a field as an annotated tile."""
        found = self._field(request)
        given = await json_of(request)
        folder = self._corrections()

        def written() -> dict[str, Any]:
            least = numbers([given.get("least_score")], 1)[0]
            name = save(folder, request.path_params["id"], found, corrected_by(found, given), least)
            arguments = command(folder, self.settings.networks)
            return {"name": name, "folder": str(folder), "saved": len(tiles(folder)), "command": shown(arguments)}

        return JSONResponse(await run_in_threadpool(written))

    def _corrections(self) -> Path:
        folder = self.settings.corrections
        if folder is None:
            msg = "This page saves nothing; start it with out=FOLDER."
            raise ConfigError(msg)
        return folder

    def tune(self, request: Request) -> Response:
        """Start the fine-tuning on all corrected tiles."""
        self.session(request)
        own, folder = self.settings, self._corrections()
        if not tiles(folder) or not trainable(own.networks):
            msg = "There is nothing to train on yet: save corrections first." if not tiles(folder) else (
                f"weights={own.networks.weights}: experiment=nuclei_finetune goes on from light networks alone."
            )  # fmt: skip
            raise ConfigError(msg)
        check_classes(folder, own.networks.segmenter.classes)
        run = folder.with_name("finetuned") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        with own.starting:
            if own.tuned is not None and own.tuned.is_running:
                msg = "A fine-tuning is running already. Wait for its end, or stop it."
                raise ConfigError(msg)
            own.tuned = Tuning(folder, own.networks, run, own.tuning)
        return JSONResponse(own.tuned.status(), 202)

    def tuning(self, request: Request) -> Response:
        """Return how far the fine-tuning is."""
        self.session(request)
        return JSONResponse(self._tuned().status())

    def stop_tuning(self, request: Request) -> Response:
        """End the fine-tuning."""
        self.session(request)
        self._tuned().stop()
        return Response(status_code=204)

    def compare(self, request: Request) -> Response:
        """Queue the comparison of the weights before and after fine-tuning."""
        session, tuned = self.session(request), self._tuned()
        if tuned.status()["state"] != "done":
            msg = "The fine-tuning has not finished."
            raise ConfigError(msg)
        networks = self.settings.networks

        def comparison(job: Job) -> dict[str, Any]:
            tuned.comparison = compared(tuned.folder, networks, tuned.bundle, job.say)
            return tuned.comparison

        return self._queued(session, comparison)

    def _tuned(self) -> Tuning:
        if self.settings.tuned is None:
            raise HTTPException(404, "Nothing was fine-tuned.")
        return self.settings.tuned


@dataclass(eq=False)
class ShownField:
    """A field, and the layers of its virtual H&E."""

    field: Field

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        own = self.field
        kept = (own.image, own.he, own.nuclei.inst_hw, own.votes_hw, own.table.outlines.corners_e2)
        return sum(array.nbytes for array in kept if array is not None)

    @cached_property
    def layers(self) -> Layers | None:
        """For tiles of the virtual H&E; None if there is none."""
        return None if self.field.he is None else Layers(ArraySource(self.field.he))


def create_app(settings: Settings) -> Starlette:
    """Return the application."""
    page = Page(settings)
    at = "/api/{what:str}/{id:str}/tiles/{level:int}/{column:int}_{row:int}.jpg"
    routes = [
        Route("/", page.index),
        Route("/api/start", page.start),
        Route("/api/files", page.files),
        Route("/api/images", page.upload, methods=["POST"]),
        Route("/api/images/open", page.open, methods=["POST"]),
        Route("/api/images/sample", page.sample, methods=["POST"]),
        Route(at, page.tile),
        Route("/api/images/{id:str}/fields", page.analyse, methods=["POST"]),
        Route("/api/jobs/{id:str}", page.job),
        Route("/api/jobs/{id:str}", page.stop, methods=["DELETE"]),
        Route("/api/fields/{id:str}", page.field),
        Route("/api/fields/{id:str}/edits", page.edits, methods=["POST"]),
        Route("/api/fields/{id:str}/files/{kind:str}", page.file, methods=["POST"]),
        Route("/api/fields/{id:str}/corrections", page.save, methods=["POST"]),
        Route("/api/tuning", page.tune, methods=["POST"]),
        Route("/api/tuning", page.tuning),
        Route("/api/tuning", page.stop_tuning, methods=["DELETE"]),
        Route("/api/tuning/comparison", page.compare, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_S)
                settings.sessions.sweep()

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        settings.queue.close()
        if settings.tuned is not None:
            settings.tuned.stop()

    return Starlette(
        routes=routes,
        lifespan=life,
        exception_handlers={Ihc2heError: _said, HTTPException: _said},
        middleware=[
            Middleware(Guard, host=settings.host, token=settings.token),
            Middleware(SessionCookie),
        ],
    )


def _said(_: Request, error: Exception) -> Response:
    """Return an error as the page shows it."""
    status = error.status_code if isinstance(error, HTTPException) else 422
    text = error.detail if isinstance(error, HTTPException) else str(error)
    return JSONResponse({"error": text}, status)


def _of(shelf: Mapping[str, T], key: str, what: str) -> T:
    found = shelf.get(key)
    if found is None:
        raise HTTPException(404, f"This {what} is no longer there: the program was started again, or it is too old.")
    return found
