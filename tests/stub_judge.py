"""An endpoint like OpenAI's on this machine, which answers as a test says."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """What was asked of the endpoint: `bodies` and `keys`, in order; `answer(body, number)` -> (status, headers, bytes)."""

    def __init__(self, answer: Callable):
        self.answer, self.bodies, self.keys = answer, [], []
        self.lock = threading.Lock()


def reply(text: str) -> tuple[int, dict, bytes]:
    """A good answer."""
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextlib.contextmanager
def serving(answer: Callable, monkeypatch) -> Iterator[Stub]:
    """Serves until the block ends; the environment names the address."""
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                number = len(stub.bodies)
                stub.bodies.append(body)
                stub.keys.append(self.headers.get("Authorization"))
            status, headers, data = stub.answer(body, number)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
