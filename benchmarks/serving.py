"""Load on a server of its own on loopback: answers, their times, and what decoding requests together is worth.

    python benchmarks/serving.py                                   200 requests of 16 clients, the default model
    python benchmarks/serving.py --requests 40 --clients 8 --model MODEL

Two servers run one after the other in this process, one that decodes up to --batch-size requests together and one that decodes
each alone, and get the same requests. One client in eight hangs up before its answer. Every answer is compared with
`EditPipeline` for the same seed: `equal` counts those whose pixels are the same to the last bit.

p50, p95    seconds from a request to its answer
ratio       requests a second, together / alone
"""

import argparse
import base64
import concurrent.futures
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
from editmgt_jax.serving.run import compile_for

HANG_UP = 8  # one client in so many goes before its answer


class Running:
    """A server on a free port of loopback."""

    def __init__(self, pipe: EditPipeline, batch: int):
        self.engine = Engine(pipe, Limits(batch=batch, queue=1000))
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


def ask(url: str, example: dict, seed: int) -> tuple[float, np.ndarray | None]:
    """-> (seconds, pixels of the answer, None of a client that hung up)"""
    buffer = io.BytesIO()
    Image.fromarray(example["source"]).save(buffer, "PNG")
    fields = {"prompt": example["instruction"], "seed": str(seed)}
    started = time.perf_counter()
    try:
        answer = httpx2.post(
            f"{url}/v1/images/edits",
            data=fields,
            files={"image": ("a.png", buffer.getvalue(), "image/png")},
            timeout=0.05 if seed % HANG_UP == HANG_UP - 1 else 600,
        )
    except httpx2.TimeoutException:
        return time.perf_counter() - started, None
    answer.raise_for_status()
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return time.perf_counter() - started, np.asarray(Image.open(io.BytesIO(data)))


def load(pipe: EditPipeline, batch: int, examples: list[dict], clients: int) -> tuple[list, float, dict]:
    """All requests by `clients` at once. -> (answers, seconds, batches by their number of requests)"""
    with Running(pipe, batch) as url, concurrent.futures.ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        found = list(pool.map(lambda i: ask(url, examples[i], i), range(len(examples))))
        seconds = time.perf_counter() - started
        batches = batches_of(url)
    return found, seconds, batches


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
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    source = SceneSource(SceneConfig(size=128, split="train", seed=3, objects="rich"))
    examples = [source[i] for i in range(options.requests)]
    rates = []
    for batch in (options.batch_size, 1):
        pipe = EditPipeline.from_pretrained(options.model, batch_size=batch)
        compile_for(pipe, (128, 128))
        found, seconds, batches = load(pipe, batch, examples, options.clients)
        answered = [(i, taken, pixels) for i, (taken, pixels) in enumerate(found) if pixels is not None]
        equal = sum(
            np.array_equal(
                pixels, np.asarray(pipe(examples[i]["source"], examples[i]["instruction"], seed=i).images[0])
            )
            for i, _, pixels in answered
        )
        p50, p95 = np.percentile([taken for _, taken, _ in answered], [50, 95])
        rates.append(len(answered) / seconds)
        print(
            f"batches of {batch}: {len(answered)} answers, {len(found) - len(answered)} clients went, {rates[-1]:.2f} answers/s, "
            f"p50 {p50:.2f} s, p95 {p95:.2f} s, equal {equal} of {len(answered)}, batches {batches}",
            flush=True,
        )
    print(f"ratio {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
