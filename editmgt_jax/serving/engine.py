"""The threads that decode what many clients ask for: requests of one shape that wait together are decoded together."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Any

from editmgt_jax.declarations import SETTINGS
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.serving.errors import ApiError
from editmgt_jax.serving.limits import Limits

_OF_PROGRAM = {setting.name for setting in SETTINGS if setting.part != "traced"}


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """One request.

    Args:
      call: keyword arguments of `EditPipeline.__call__`, or of `generate` where there is no 'image'.
      finish: result -> what the request is answered with, on a thread of the engine.
    """

    call: Mapping[str, Any]
    finish: Callable[[Any], Any]
    future: Future = dataclasses.field(default_factory=Future)

    @property
    def shape(self) -> tuple:
        """What requests that go together share."""
        image = self.call.get("image")
        static = sorted((name, str(value)) for name, value in self.call.items() if name in _OF_PROGRAM)
        return None if image is None else image.size, tuple(static)

    @property
    def pictures(self) -> int:
        """How many pictures it asks for."""
        return self.call.get("num_images", 1)


class Engine:
    """The queue of requests and the threads that work on it."""

    def __init__(self, pipe: EditPipeline, limits: Limits):
        self.pipe, self.limits = pipe, limits
        self.batches: collections.Counter[int] = collections.Counter()  # number of requests in a batch -> batches
        self._waiting: collections.deque[Work] = collections.deque()
        self._changed = threading.Condition()
        self._open, self._seconds = True, 1.0  # of a request, on average
        self._threads = [threading.Thread(target=self._loop, name="engine", daemon=True) for _ in range(limits.workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def open(self) -> bool:
        """Whether new requests are taken."""
        return self._open

    def submit(self, work: Work) -> Future:
        """Adds a request. -> what `finish` returns. Cancelling it takes it out of the queue. Errors: ApiError 429, 503."""
        with self._changed:
            if not self._open:
                raise closing()
            if len(self._waiting) >= self.limits.queue:
                seconds = max(1, round(len(self._waiting) * self._seconds / self.limits.workers))
                raise ApiError(
                    429,
                    f"{len(self._waiting)} requests wait, and no more may: try again in {seconds} s",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(seconds)},
                )
            self._waiting.append(work)
            self._changed.notify_all()
        return work.future

    def recorded(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """A call that also keeps its steps, where there are several."""
        several = call.get("steps", self.pipe.settings().steps) > 1
        return {**call, "record": True} if several else dict(call)

    def close(self) -> None:
        """Takes no new request and answers those that wait with 503; what runs is finished."""
        with self._changed:
            self._open = False
            waiting, self._waiting = self._waiting, collections.deque()
            self._changed.notify_all()
        for work in waiting:
            _settle(work.future, error=closing())

    def join(self, seconds: float | None = None) -> None:
        """Waits until what runs is finished; the engine must be closed."""
        for thread in self._threads:
            thread.join(seconds)

    def _loop(self):
        while batch := self._next_batch():
            started = time.monotonic()
            count = self._run(batch)
            with self._changed:
                if count:
                    self.batches[count] += 1
                self._seconds += 0.2 * ((time.monotonic() - started) / len(batch) - self._seconds)

    def _next_batch(self) -> list[Work]:
        """The oldest request and those of its shape, no more than a batch; none once the engine is closed."""
        with self._changed:
            while not self._gather():
                if not self._open:
                    return []
            shape, taken, left, pictures = self._waiting[0].shape, [], collections.deque(), 0
            for work in self._waiting:
                fits = work.shape == shape and (not taken or pictures + work.pictures <= self.limits.batch)
                if fits:
                    pictures += work.pictures
                (taken if fits else left).append(work)
            self._waiting = left
        return taken

    def _gather(self) -> bool:
        """Waits for a request, and a little longer for others to go with it. -> whether another thread has left any"""
        while self._open and not self._waiting:
            self._changed.wait()
        until = time.monotonic() + self.limits.wait_seconds
        while self._open and not self._enough() and (rest := until - time.monotonic()) > 0:
            self._changed.wait(rest)
        return bool(self._waiting)

    def _enough(self) -> bool:
        return sum(work.pictures for work in self._waiting) >= self.limits.batch

    def _run(self, batch) -> int:
        """Answers those whose clients still wait. -> how many"""
        running = [work for work in batch if work.future.set_running_or_notify_cancel()]
        edits = [work for work in running if "image" in work.call]
        try:
            results = dict(zip(edits, self.pipe.together([work.call for work in edits]), strict=True))
        except Exception as defect:
            results = dict.fromkeys(edits, defect)
        for work in running:
            try:
                result = results[work] if work in results else self.pipe.generate(**work.call)
                if isinstance(result, BaseException):
                    raise result
                _settle(work.future, work.finish(result))
            except Exception as error:  # the client's or our own: the route tells them apart
                _settle(work.future, error=error)
        return len(running)


def _settle(future, value=None, error=None):
    """Gives a future its outcome, unless the client has gone."""
    try:
        future.set_result(value) if error is None else future.set_exception(error)
    except InvalidStateError:
        pass


def closing() -> ApiError:
    """What a request is answered with when the server ends."""
    return ApiError(
        503, "the server is shutting down: try another one", code="shutting_down", headers={"Retry-After": "10"}
    )
