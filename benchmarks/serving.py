"""Load on a server of its own on loopback: answers, their times, and what a server that works on several requests is worth.

    python benchmarks/serving.py                                   200 requests of 16 clients, the default model
    python benchmarks/serving.py --requests 40 --clients 8 --model MODEL

Two servers share a model and take turns, so that other work on the machine slows both. One is as `editmgt serve` makes it, or
with --batch-size and --workers: all clients ask it at once, and one client in eight hangs up before its answer. The other decodes
each request alone, and gets one after the other. Every answer is compared with `EditPipeline` for the same seed: `equal` counts
those whose pixels are the same to the last bit.

p50, p95    seconds from a request to its answer
CPU         seconds of the servers and clients for each answer, user and system
ratio       answers a second, together / one after the other
"""

import argparse
import base64
import concurrent.futures
import dataclasses
import io
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2
import numpy as np
import uvicorn
from PIL import Image

from editmgt_jax.data.scenes.source import SceneConfig, SceneSource
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.serving.app import Server, make_app
from editmgt_jax.serving.engine import Engine
from editmgt_jax.serving.limits import Limits
from editmgt_jax.serving.run import compile_for, for_this_machine

HANG_UP = 8  # one client in so many goes before its answer
PART = 40  # requests of a turn


class Running:
    """A server on a free port of loopback."""

    def __init__(self, pipe: EditPipeline, limits: Limits):
        self.engine = Engine(pipe, limits)
        config = uvicorn.Config(make_app(Server(self.engine, "model")), port=0, log_level="error", access_log=False)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self.server.started:
            time.sleep(0.05)
        host, port = self.server.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def __exit__(self, *_):
        self.server.should_exit = True
        self._thread.join()


def ask(client: httpx2.Client, example: dict, seed: int, hangs_up: bool) -> tuple[float, np.ndarray | None]:
    """-> (seconds, pixels of the answer, None of a client that hung up)"""
    buffer = io.BytesIO()
    Image.fromarray(example["source"]).save(buffer, "PNG")
    fields = {"prompt": example["instruction"], "seed": str(seed)}
    started = time.perf_counter()
    try:
        answer = client.post(
            "/v1/images/edits",
            data=fields,
            files={"image": ("a.png", buffer.getvalue(), "image/png")},
            timeout=0.05 if hangs_up else 600,
        )
    except httpx2.TimeoutException:
        return time.perf_counter() - started, None
    answer.raise_for_status()
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return time.perf_counter() - started, np.asarray(Image.open(io.BytesIO(data)))


class Load:
    """Requests to a server, a part at a time, and what came of them.

    Args:
      clients: that ask at once. One alone never hangs up, since then nothing waits that could be spared.
    """

    def __init__(self, url: str, examples: list[dict], clients: int):
        self._url, self._examples, self._clients = url, examples, clients
        self._client = httpx2.Client(base_url=url)  # making one takes as long as a small edit
        self.found: dict[int, tuple[float, np.ndarray | None]] = {}
        self.seconds = self.cpu = 0.0

    def run(self, seeds: range) -> None:
        """The requests of some seeds."""

        def one(seed):
            hangs_up = self._clients > 1 and seed % HANG_UP == HANG_UP - 1
            return ask(self._client, self._examples[seed], seed, hangs_up)

        started, cpu = time.perf_counter(), time.process_time()
        with concurrent.futures.ThreadPoolExecutor(self._clients) as pool:
            self.found |= dict(zip(seeds, pool.map(one, seeds), strict=True))
        self.seconds += time.perf_counter() - started
        self.cpu += time.process_time() - cpu

    def report(self, pipe: EditPipeline) -> tuple[float, str]:
        """-> (answers a second, a line on all)"""
        answered = [(seed, taken, pixels) for seed, (taken, pixels) in self.found.items() if pixels is not None]
        equal = sum(
            np.array_equal(pixels, pipe(example["source"], example["instruction"], seed=seed).images[0])
            for seed, _, pixels in answered
            for example in [self._examples[seed]]
        )
        p50, p95 = np.percentile([taken for _, taken, _ in answered], [50, 95])
        rate, count = len(answered) / self.seconds, len(answered)
        return rate, (
            f"{count} answers, {len(self.found) - count} clients went, {rate:.2f} answers/s, p50 {p50:.2f} s, p95 {p95:.2f} s, "
            f"CPU {self.cpu / count:.2f} s, equal {equal} of {count}, batches {batches_of(self._url)}"
        )


def batches_of(url: str) -> dict[str, int]:
    """{requests in a batch: batches}, from the server's metrics."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    found = [line.split() for line in lines if line.startswith("editmgt_batches{")]
    return {name.split('"')[1]: int(float(count)) for name, count in found}


def main() -> None:
    """Prints a line for each server and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory (default: that of the package)")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch-size", type=int, help="default that of `editmgt serve`")
    parser.add_argument("--workers", type=int, help="default that of `editmgt serve`")
    options = parser.parse_args()
    source = SceneSource(SceneConfig(size=128, split="train", seed=3, objects="rich"))
    examples = [source[i] for i in range(options.requests)]
    limits = for_this_machine(Limits(queue=1000), options.batch_size, options.workers)
    pipe = EditPipeline.from_pretrained(options.model, batch_size=limits.batch)
    compile_for(pipe, (128, 128))
    alone = dataclasses.replace(limits, batch=1, workers=1)
    with Running(pipe, limits) as together_url, Running(pipe, alone) as alone_url:
        loads = Load(together_url, examples, options.clients), Load(alone_url, examples, 1)
        for start in range(0, options.requests, PART):
            for load in loads:
                load.run(range(start, min(start + PART, options.requests)))
        (together, line), (one_by_one, other) = (load.report(pipe) for load in loads)
    print(f"batches of {limits.batch}, {limits.workers} workers: {line}\none after the other: {other}")
    print(f"ratio {together / one_by_one:.2f}")


if __name__ == "__main__":
    main()
