"""The queue of a server on slow and tiny models: what waits, what is cancelled, what ends, and workers beside one another."""

import asyncio
import threading
import time

import numpy as np
import pytest
from PIL import Image

from editmgt_jax.serving import requests
from editmgt_jax.serving.app import Server
from editmgt_jax.serving.engine import Engine, Work
from editmgt_jax.serving.errors import ApiError
from editmgt_jax.serving.limits import Limits


class Slow:
    """A pipeline whose edits wait for an event."""

    def __init__(self):
        self.go, self.seen = threading.Event(), []

    def together(self, calls):
        self.go.wait(20)
        self.seen += calls
        return [call["seed"] for call in calls]


def work(seed, size=(8, 8)):
    return Work({"image": Image.new("RGB", size), "seed": seed}, lambda result: result)


def running(engine, one):
    """The answer to come of work that the engine has begun."""
    answer = engine.submit(one)
    while engine.waiting:
        time.sleep(0.01)
    return answer


def test_a_full_queue_a_client_that_goes_and_the_end():
    slow = Slow()
    engine = Engine(slow, Limits(queue=2, batch=2, wait_seconds=0))
    begun = running(engine, work(0))
    gone, waiting = engine.submit(work(1)), engine.submit(work(2))
    with pytest.raises(ApiError) as full:
        engine.submit(work(3))
    assert full.value.status == 429 and int(full.value.headers["Retry-After"]) >= 1
    gone.cancel()
    engine.close()
    with pytest.raises(ApiError, match="shutting down"):
        waiting.result(5)
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit(work(4))
    slow.go.set()
    assert begun.result(5) == 0
    engine.join(5)
    assert [call["seed"] for call in slow.seen] == [0]


class Staying:
    """A request whose client waits."""

    async def is_disconnected(self):
        return False


def test_work_that_outlasts_the_end_of_the_server_is_answered_503():
    slow = Slow()
    server = Server(Engine(slow, Limits(wait_seconds=0)), "slow")
    asked = requests.Asked(work(0).call, None, "png", 95, False, False, 0)

    async def end():
        answer = asyncio.create_task(server._result(Staying(), asked))
        await asyncio.sleep(0.1)
        server.engine.close()
        answer.cancel()  # as uvicorn does when it has waited long enough
        await answer

    with pytest.raises(ApiError, match="shutting down") as error:
        asyncio.run(end())
    slow.go.set()
    assert error.value.status == 503


def test_what_was_cancelled_is_not_decoded_and_shapes_do_not_mix():
    slow = Slow()
    engine = Engine(slow, Limits(queue=9, batch=4, wait_seconds=0.05))
    first = running(engine, work(0))
    rest = [engine.submit(work(1)), engine.submit(work(2, (9, 8))), engine.submit(work(3)), engine.submit(work(4))]
    rest[3].cancel()
    slow.go.set()
    assert first.result(5) == 0 and [future.result(5) for future in rest[:3]] == [1, 2, 3]
    assert [call["seed"] for call in slow.seen] == [0, 1, 3, 2]
    engine.close()


def test_workers_decode_at_once_what_is_the_same_alone(pipe):
    started = threading.Barrier(2)

    class Meeting:
        """A pipeline whose first two edits wait for each other."""

        def together(self, calls):
            if calls[0]["seed"] < 2:
                started.wait(20)
            return pipe.together(calls)

    engine = Engine(Meeting(), Limits(batch=1, workers=2, wait_seconds=0))
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    calls = [
        {"image": Image.fromarray(picture), "instruction": "make the car red", "seed": seed, "steps": 4}
        for seed, picture in enumerate(pictures)
    ]
    futures = [engine.submit(Work(call, lambda result: result)) for call in calls]
    for call, future in zip(calls, futures, strict=True):
        np.testing.assert_array_equal(future.result(60).images[0], pipe(**call).images[0])
    engine.close()
    engine.join(5)
    assert engine.batches == {1: 6}
