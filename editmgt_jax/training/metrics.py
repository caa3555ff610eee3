"""Where training metrics go: a JSONL file and TensorBoard."""

import json
from pathlib import Path


class MetricsWriter:
    """Appends {'step': ..., name: value} lines to `metrics.jsonl` and scalars to TensorBoard in `directory`.

    Lines past `resume_step` of an earlier, interrupted run are dropped first, so that the file reads as one run.
    """

    def __init__(self, directory, resume_step: int = 0):
        from tensorboardX import SummaryWriter

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resume_step]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict) -> None:
        self._file.write(json.dumps({"step": step} | {k: round(float(v), 6) for k, v in values.items()}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> int:
    """The step of a line; a line cut off by a crash counts as past any step."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return 1 << 62
