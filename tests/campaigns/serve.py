"""`editmgt serve --page` under load, asked to end, and killed: what its clients get, and what stays behind.

    python tests/campaigns/serve.py                               200 requests of 16 clients, the default model
    python tests/campaigns/serve.py --model MODEL --requests 40

1. All requests are sent, one client in eight hangs up. Every answer must be that of `EditPipeline` for its seed.
2. The same, and SIGTERM in the middle: each client gets an answer, a 503, or no connection; the process ends with 0. There must be
   more clients than a batch has pictures (8), so that some wait.
3. `kill -9`, and a new start: the folder of temporary files of the killed one is gone.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx2
import numpy as np
from PIL import Image

from editmgt_jax.pipeline import EditPipeline

HANG_UP = 8  # one client in so many goes before its answer
INSTRUCTION = "make the car red"


@contextlib.contextmanager
def serving(model: str | None, folder: Path):
    """-> (the process, its address)"""
    command = [
        sys.executable,
        "-m",
        "editmgt_jax.cli",
        "serve",
        "--page",
        "--port",
        "0",
        "--queue",
        "1000",
        "--warm",
        "128x128",
    ]
    command += ["--model", model] if model else []
    environment = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = next((line.split()[-1] for line in process.stderr if line.startswith("listening on")), None)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it is never full
        yield process, url
    finally:
        process.kill()
        process.wait()


def picture(seed: int) -> Image.Image:
    """The picture of a request."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC)


def ask(url: str, seed: int, hangs_up: bool) -> tuple[str, float, np.ndarray | None]:
    """-> (status, seconds, pixels of an answer)"""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    asked = {"data": {"prompt": INSTRUCTION, "seed": str(seed)}, "files": {"image": ("a.png", buffer.getvalue())}}
    started = time.perf_counter()
    try:
        answer = httpx2.post(f"{url}/v1/images/edits", timeout=0.05 if hangs_up else 600, **asked)
    except httpx2.TimeoutException:
        return "hung up", time.perf_counter() - started, None
    except httpx2.TransportError:
        return "no connection", time.perf_counter() - started, None
    if answer.status_code != 200:
        return str(answer.status_code), time.perf_counter() - started, None
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return "200", time.perf_counter() - started, np.asarray(Image.open(io.BytesIO(data)))


def load(url: str, requests: int, clients: int, answered=lambda: None) -> list:
    """What `ask` gives for each request; `answered` is called after each answer."""

    def one(seed):
        found = ask(url, seed, seed % HANG_UP == HANG_UP - 1)
        if found[0] == "200":
            answered()
        return found

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(requests)))


def under_load(model: str | None, folder: Path, requests: int, clients: int) -> str:
    """The first part. Errors: AssertionError."""
    pipe = EditPipeline.from_pretrained(model)
    with serving(model, folder) as (_, url):
        started = time.perf_counter()
        found = load(url, requests, clients)
        seconds = time.perf_counter() - started
    answers = [(seed, taken, pixels) for seed, (status, taken, pixels) in enumerate(found) if status == "200"]
    statuses = collections.Counter(status for status, *_ in found)
    assert statuses.keys() <= {"200", "hung up"}, statuses
    for seed, _, pixels in answers:
        np.testing.assert_array_equal(pixels, np.asarray(pipe(picture(seed), INSTRUCTION, seed=seed).images[0]))
    p50, p95 = np.percentile([taken for _, taken, _ in answers], [50, 95])
    return f"{dict(statuses)}, all {len(answers)} as EditPipeline's, {len(answers) / seconds:.2f}/s, p50 {p50:.2f} s, p95 {p95:.2f} s"


def asked_to_end(model: str | None, folder: Path, requests: int, clients: int) -> str:
    """The second part. Errors: AssertionError."""
    with serving(model, folder) as (process, url):
        answers, ended = [], []

        def answered():
            answers.append(1)
            if len(answers) == 3:
                ended.append(time.perf_counter())
                process.send_signal(signal.SIGTERM)

        found = load(url, requests, clients, answered)
        code = process.wait(60)
        seconds = time.perf_counter() - ended[0]
    statuses = collections.Counter(status for status, *_ in found)
    assert code == 0 and statuses["503"] and statuses.keys() <= {"200", "503", "hung up", "no connection"}, statuses
    assert left(folder) == []
    return f"{dict(statuses)}, exit {code}, clients and server done {seconds:.1f} s after the signal"


def killed(model: str | None, folder: Path) -> str:
    """The third part. Errors: AssertionError."""
    with serving(model, folder) as (process, url):
        assert ask(url, 0, False)[0] == "200"
        process.kill()
    before = left(folder)
    with serving(model, folder) as (_, url):
        after = left(folder)
        assert ask(url, 0, False)[0] == "200"
    assert len(before) == len(after) == 1 and before != after
    return f"{before[0]} was left, and is gone after the next start"


def left(folder: Path) -> list[str]:
    """Temporary files of servers."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("editmgt"))


def main() -> None:
    """Prints a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory (default: that of the package)")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), (args.requests, args.clients)
        print("load:", under_load(args.model, folder, *sizes), flush=True)
        print("SIGTERM:", asked_to_end(args.model, folder, *sizes), flush=True)
        print("kill -9:", killed(args.model, folder), flush=True)


if __name__ == "__main__":
    main()
