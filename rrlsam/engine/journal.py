"""What happened in training: JSON lines for programs, a plain log and a picture for people."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from rrlsam.pictures import TrainingRecord


class Journal:
    """One line of metrics an iteration, in metrics.jsonl; holds nothing that depends on the clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")

    @property
    def size(self) -> int:
        """Bytes written so far; a checkpoint keeps the number, so that resuming can cut what came after it."""
        self._stream.flush()
        return self._stream.tell()

    def cut(self, size: int) -> None:
        """Forget everything after the first `size` bytes."""
        self._stream.flush()
        os.truncate(self.path, size)
        self._stream.seek(0, os.SEEK_END)

    def write(self, stage: str, iteration: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        """Add one iteration; a term that is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in terms.items()}
        line = {"stage": stage, "iteration": iteration, "learning_rate": learning_rate, "terms": finite}
        self._stream.write(json.dumps(line).encode() + b"\n")
        self._stream.flush()

    def records(self) -> list[TrainingRecord]:
        """All lines so far."""
        self._stream.flush()
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
