"""`python -m editmgt_jax.data.prepare.sdk_worker`: a process that calls functions for `workers.each`. Named as Beam names its workers.

Reads pickled (function, item) from standard input, and answers each with None or an error. It ends when its input does, in the
middle of a call, too: then the command that started it is gone.
"""

import os
import pickle
import queue
import sys
import threading


def main() -> None:
    """Answers calls until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a call prints is no answer
    calls: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(calls,), daemon=True).start()
    while True:
        answers.write(_answer(*calls.get()))
        answers.flush()


def _read(calls) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(0)


def _answer(function, item) -> bytes:
    try:
        function(item)
    except Exception as error:  # noqa: BLE001  (the caller raises it)
        try:
            answer = pickle.dumps(error)
            pickle.loads(answer)
        except Exception:  # noqa: BLE001  (errors of other libraries that cannot be sent)
            return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        return answer
    return pickle.dumps(None)


if __name__ == "__main__":
    main()
