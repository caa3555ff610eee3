"""The HTTP API: OpenAI's image routes, models, health and metrics."""

import asyncio
import base64
import contextlib
import hmac
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from editmgt_jax.errors import EditMGTError
from editmgt_jax.serving import answers
from editmgt_jax.serving.engine import Engine, Work, closing
from editmgt_jax.serving.errors import ApiError, bad
from editmgt_jax.serving.limits import Limits
from editmgt_jax.serving.requests import Asked, read_edit, read_generation

log = logging.getLogger("editmgt.serve")


class Server:
    """What the routes share.

    Args:
      name: of the model, as clients name it; keys: any of which a request must bring; none asks for none.
    """

    def __init__(self, engine: Engine, name: str, keys: Sequence[str] = ()):
        self.engine, self.name, self.keys = engine, name, tuple(keys)
        self.limits: Limits = engine.limits
        self.kept = answers.Kept(self.limits)
        self.started = int(time.time())
        self.metrics = Metrics(engine)

    # ---- routes

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits"""
        asked = await run_in_threadpool(read_edit, await self._form(request), self.name, self.limits)
        self.metrics.asked("edit", asked)
        return await self._answer(request, asked)

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations. Errors: ApiError for a model that edits only."""
        if self.engine.pipe.model.is_editor:
            raise bad(
                f"the model {self.name!r} edits pictures, and makes none from text: use /v1/images/edits", "model"
            )
        asked = await run_in_threadpool(read_generation, await self._json(request), self.name, self.limits)
        self.metrics.asked("generate", asked)
        return await self._answer(request, asked)

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        one = {"id": self.name, "object": "model", "created": self.started, "owned_by": "editmgt_jax"}
        return JSONResponse({"object": "list", "data": [one]})

    async def file(self, request: Request) -> Response:
        """GET /v1/images/files/NAME"""
        name = request.path_params["name"]
        data = self.kept.get(name)
        if data is None:
            raise ApiError(404, "there is no such file, or no more", code="not_found")
        return Response(data, media_type=answers.TYPES[name.rpartition(".")[2]])

    async def health(self, request: Request) -> Response:
        """GET /healthz"""
        if not self.engine.open:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        return JSONResponse({"status": "ok", "waiting": self.engine.waiting})

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics"""
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    # ---- inside

    async def _form(self, request) -> dict[str, list[Any]]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(
                415,
                f"edits are sent as multipart/form-data; got {kind or 'no content type'}",
                code="invalid_content_type",
            )
        limits = self.limits
        try:
            form = await request.form(max_files=4, max_fields=limits.fields, max_part_size=limits.field_bytes)
        except (MultiPartException, HTTPException, KeyError, ValueError) as error:
            said = getattr(error, "message", None) or getattr(error, "detail", None) or "it is damaged"
            raise bad(f"the form cannot be read: {said}", code="invalid_form") from None
        values: dict[str, list[Any]] = {}
        try:
            for name, value in form.multi_items():
                values.setdefault(name, []).append(await value.read() if isinstance(value, UploadFile) else value)
        finally:
            await form.close()
        return values

    async def _json(self, request) -> dict[str, list[Any]]:
        try:
            values = await request.json()
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise bad("the body must be a JSON object", code="invalid_json")
        return {
            name: value if isinstance(value, list) else [value] for name, value in values.items() if value is not None
        }

    async def _answer(self, request, asked: Asked) -> Response:
        result, partial = await self._result(request, asked)
        if asked.stream:
            return StreamingResponse(answers.events(asked, partial, result.images[0]), media_type="text/event-stream")
        files = [await run_in_threadpool(answers.encoded, image, asked) for image in result.images]
        if asked.as_url:
            names = [self.kept.add(data, asked.output_format) for data in files]
            data = [{"url": str(request.url_for("file", name=name))} for name in names]
        else:
            data = [{"b64_json": base64.b64encode(data).decode()} for data in files]
        return JSONResponse({"created": int(time.time()), "data": data} | answers.described(asked, result.images[0]))

    async def _result(self, request, asked):
        """The result and the pictures of its steps; the work is dropped when the client goes or the time is up."""

        call = self.engine.recorded(asked.call) if asked.stream and asked.partial_images else asked.call

        def finish(result):
            shown = answers.partial_steps(int(result.passes[0]), asked.partial_images) if "record" in call else []
            frames = self.engine.pipe.paint_steps(result) if shown else []
            return result, [frames[step] for step in shown]

        future = self.engine.submit(Work(call, finish))
        answer = asyncio.wrap_future(future)
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait({answer, gone}, timeout=self.limits.request_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            future.cancel()
            if gone.done():
                raise ClientDisconnect
            raise ApiError(504, f"the edit took longer than {self.limits.request_seconds:g} s", code="timeout")
        except asyncio.CancelledError:  # of a server that ends, and waits no longer
            if self.engine.open:
                raise
            raise closing() from None
        finally:
            gone.cancel()
            answer.cancel()


async def _until_gone(request):
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)


class Metrics:
    """Figures of the server, for Prometheus."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.requests = Counter("editmgt_requests", "answered requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("editmgt_request_seconds", "time to the answer", ["route"], registry=self.registry)
        self.pictures = Counter("editmgt_pictures", "pictures asked for", ["kind"], registry=self.registry)
        waiting = Gauge("editmgt_waiting_requests", "requests in the queue", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)
        batches = Gauge("editmgt_batches", "batches decoded", ["requests"], registry=self.registry)
        self._engine, self._batches = engine, batches

    def asked(self, kind: str, asked: Asked) -> None:
        """Counts the pictures of a request."""
        self.pictures.labels(kind).inc(asked.call["num_images"])

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        for size, count in list(self._engine.batches.items()):
            self._batches.labels(str(size)).set(count)


class Guard:
    """Around the routes: the key, the size of bodies, errors as OpenAI's objects, a line of the log for each request.

    The line has the route, the status and the time, and nothing of what was sent.
    """

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        route = scope["path"] if scope["path"] in ROUTES else "other" if scope["path"].startswith("/v1/") else "page"
        try:
            self._check_key(scope)
            scope = {**scope, "app": self.app}  # then a router raises what it has no route for
            await self.app(scope, self._bounded(scope, receive), sending)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            answer = _answer_to(error)
            if status:  # the answer had begun
                raise
            await answer(scope, receive, sending)
        finally:
            seconds = time.monotonic() - started
            self.server.metrics.answered(route, status, seconds)
            level = logging.DEBUG if route == "page" and status < 400 else logging.INFO
            log.log(level, "%s %s %d %.2f s", scope["method"], route, status, seconds)

    def _check_key(self, scope):
        if not self.server.keys or scope["path"] == "/healthz":
            return
        key = _key_of(dict(scope["headers"]).get(b"authorization", b""))
        known = [hmac.compare_digest(key, one.encode()) for one in self.server.keys]
        if not any(known):
            raise ApiError(
                401,
                "the header Authorization must be 'Bearer KEY', with a key of this server",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="editmgt: the password is a key"'},  # a browser asks for it
            )

    def _bounded(self, scope, receive):
        most = self.server.limits.body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > most:
            raise _too_large(most)
        taken = 0

        async def bounded():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(most)
            return message

        return bounded


def _key_of(header: bytes) -> bytes:
    """The key that a header Authorization brings: of an API's client, or as the password of a browser."""
    kind, _, key = header.partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    if kind.lower() == b"basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(key.strip(), validate=True).partition(b":")[2]
    return b""


def _too_large(most):
    return ApiError(413, f"a request may have at most {most} bytes: send smaller pictures", code="request_too_large")


def _answer_to(error) -> Response:
    """The answer to a request that failed. A defect is logged by its type and place alone."""
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, str(error.detail), code="invalid_request")
    elif isinstance(error, (EditMGTError, OSError)):
        error = bad(str(error))
    elif not isinstance(error, ApiError):
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        log.error("defect: %s at %s", type(error).__name__, where)
        error = ApiError(500, "the server has a defect; the edit was not made", code="internal_error")
    return JSONResponse(error.body, error.status, error.headers)


ROUTES = ("/v1/images/edits", "/v1/images/generations", "/v1/models", "/healthz", "/metrics")


class Page(Protocol):
    """The page that browsers see, see `page.Page`."""

    app: Starlette

    def close(self) -> None:
        """Ends the connections that browsers keep open."""


def make_app(server: Server, page: Page | None = None) -> ASGIApp:
    """The whole application. With a page, it has all paths that are no route's and not below /v1."""
    routes = [
        Route("/v1/images/edits", server.edits, methods=["POST"]),
        Route("/v1/images/generations", server.generations, methods=["POST"]),
        Route("/v1/images/files/{name}", server.file, name="file"),
        Route("/v1/models", server.models),
        Route("/healthz", server.health),
        Route("/metrics", server.show_metrics),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with contextlib.nullcontext() if page is None else page.app.router.lifespan_context(page.app):
            yield
            server.engine.close()
            await run_in_threadpool(server.engine.join)

    async def other(scope, receive, send):
        if page is None or scope["path"].startswith("/v1/"):
            raise HTTPException(404)
        await page.app(scope, receive, send)

    return Guard(Router(routes, default=other, lifespan=lifespan), server)
