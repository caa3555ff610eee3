"""Scores from a model that looks at pictures, through an endpoint that speaks OpenAI's chat completions, or from judged files.

The address is OPENAI_BASE_URL (such as http://localhost:8000/v1), the key OPENAI_API_KEY. Replies are cached on disk: an
evaluation that is stopped goes on, and a second one costs nothing. Prompts come from a file, else from the benchmark's data; without
either the protocol's own wording here is used, which is not the benchmark's, and the evaluation says so.
"""

import ast
import base64
import hashlib
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from PIL import Image

from editmgt_jax.errors import EditMGTError, UserError
from editmgt_jax.files import parse_json, write_json

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
HOUSE = "house-1"  # version of the wording in the protocols' modules
RETRIES = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds
TIMEOUT = 120.0  # seconds for one reply
MAX_TOKENS = 1400
# The constants of VIEScore's module whose texts, one below the other, are GEdit-Bench's prompts.
VIESCORE = {
    "semantics": ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC"),
    "quality": ("_context_no_delimit", "_prompts_0shot_rule_PQ"),
}
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP states that a repetition may change


class JudgeError(EditMGTError):
    """An endpoint that refuses, or does not answer."""


class Judge:
    """A named model behind an endpoint, asked at temperature 0.

    Args:
      cache: folder of replies; prompts: file of the benchmark's own prompts, see `read_prompts`; workers: questions at once.
    Errors: UserError without an address, or for a file of prompts that is none.
    """

    def __init__(
        self,
        model: str,
        cache: str | Path,
        prompts: str | Path | None = None,
        workers: int = 8,
        retries: int = RETRIES,
        first_wait: float = FIRST_WAIT,
        timeout: float = TIMEOUT,
    ):
        self.url, self._key = os.environ.get(URL, "").rstrip("/"), os.environ.get(KEY, "")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(
                f"a judge needs the address of its endpoint in {URL}, as http://localhost:8000/v1; got {self.url!r}"
            )
        self.where, self.cache, self.workers = model, Path(cache), workers
        self._retries, self._first_wait, self._timeout = retries, first_wait, timeout
        self._prompts = None if prompts is None else read_prompts(prompts)
        self.asked = 0  # requests that went out
        self._asking: dict[str, threading.Lock] = {}  # by hash of the question

    @property
    def variant(self) -> str:
        """How it is asked, for the summary of an evaluation."""
        digest = hashlib.sha256(json.dumps(self._prompts, sort_keys=True).encode()).hexdigest()[:12]
        return f"temperature 0, prompts {HOUSE if self._prompts is None else digest}"

    def adopt(self, prompts: dict[str, str]) -> None:
        """Takes the prompts of a benchmark's data, unless there are none or a file was given."""
        if self._prompts is None and prompts:
            self._prompts = prompts

    def prompt(self, name: str, house: dict[str, str]) -> str:
        """The text of a prompt: of the file, else of `house`. Errors: UserError naming the prompts that there are."""
        prompts = house if self._prompts is None else self._prompts
        if name not in prompts:
            raise UserError(
                f"this benchmark needs the prompt {name!r}, from --prompts FILE; there are {sorted(prompts)}"
            )
        return prompts[name]

    def ask(self, text: str, pictures: Sequence[Image.Image], attempt: int = 0) -> str:
        """The reply to a text followed by pictures, from the cache if it was given before.

        Args:
          attempt: another one is asked anew.
        Errors: JudgeError, transient if a restart may help.
        """
        urls = [f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}" for picture in pictures]
        content = [{"type": "text", "text": text}] + [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = {
            "model": self.where,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        digest = hashlib.sha256(json.dumps([body, attempt], sort_keys=True).encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        with self._asking.setdefault(digest, threading.Lock()):  # equal questions at one time are one
            if path.is_file():
                return json.loads(path.read_text())["reply"]
            reply = self._repeat(body)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model": self.where, "attempt": attempt, "reply": reply})
            return reply

    def _repeat(self, body) -> str:
        """Asks until there is a reply, waiting longer each time."""
        for tried in range(self._retries + 1):
            try:
                return self._send(body)
            except JudgeError as error:
                if not error.transient or tried == self._retries:
                    raise
                wait = min(self._first_wait * 2**tried, LONGEST_WAIT)
                time.sleep(max(getattr(error, "wait", 0.0), wait * random.uniform(0.5, 1.0)))
        raise AssertionError("unreachable")

    def _send(self, body) -> str:
        self.asked += 1
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return _text_of(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            found = JudgeError(
                f"the judge at {self.url} answered {error.code}: {_message(error)}", error.code in PASSING
            )
            found.wait = _seconds(error.headers.get("Retry-After"))
            raise found from error
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise JudgeError(f"the judge at {self.url} gave no reply: {error or type(error).__name__}", True) from error


class Judged:
    """Judged files in the place of a judge: what they are is the protocol's own. `where`: file or folder."""

    workers = 1

    def __init__(self, where: str | Path):
        if not Path(where).exists():
            raise FileNotFoundError(f"judged files are a file or a folder; there is none at {where}")
        self.where, self.variant, self._tables = str(where), "judged files", {}

    def table(self, suffix: str, read: Callable[[list[Path]], dict]) -> dict:
        """What `read` makes of the files with a suffix, read once."""
        if suffix not in self._tables:
            self._tables[suffix] = read(self.files(suffix))
        return self._tables[suffix]

    def files(self, suffix: str) -> list[Path]:
        """The files with a suffix, in order of their names. Errors: FileNotFoundError if there is none."""
        path = Path(self.where)
        found = [path] if path.is_file() else sorted(path.rglob(f"*{suffix}"))
        if not found or found[0].suffix != suffix:
            raise FileNotFoundError(f"judged files of this benchmark have the suffix {suffix}; {path} has none")
        return found


def read_prompts(path: str | Path) -> dict[str, str]:
    """Prompts of a JSON file {name: text}, or of VIEScore's module `vie_prompts.py`. Errors: UserError, FileNotFoundError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"prompts are a JSON file; there is none at {path}")
    if path.suffix == ".py":
        return _viescore(path)
    try:
        found = parse_json(path.read_text())
    except ValueError as error:
        raise UserError(f"prompts are a JSON file of names and texts; {path} is none: {error}") from error
    if not (isinstance(found, dict) and all(isinstance(text, str) for text in found.values())):
        raise UserError(f"prompts are a JSON file of names and texts; {path} has other values")
    return found


def _viescore(path) -> dict[str, str]:
    """The prompts of a module's constants, put together as the scorers of GEdit-Bench do. The module is not run."""
    try:
        statements = ast.parse(path.read_text()).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} must be VIEScore's module of prompts; it is no Python: {error}") from error
    texts = {
        statement.targets[0].id: statement.value.value
        for statement in statements
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }
    wanted = {name for parts in VIESCORE.values() for name in parts}
    if missing := sorted(wanted - set(texts)):
        raise UserError(f"{path} must be VIEScore's module of prompts; it lacks {', '.join(missing)}")
    return {name: "\n".join(texts[part] for part in parts) for name, parts in VIESCORE.items()}


def _png(picture):
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _text_of(answer) -> str:
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"a reply must be text; got {text!r}")
    return text


def _message(error) -> str:
    try:
        return json.loads(error.read())["error"]["message"]
    except (ValueError, LookupError, TypeError, OSError):
        return error.reason


def _seconds(text) -> float:
    try:
        return min(float(text), LONGEST_WAIT)
    except (TypeError, ValueError):
        return 0.0
