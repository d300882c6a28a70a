"""What happened in training, a JSON line an iteration."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from rrlsam.errors import BadInputError, ResourceError
from rrlsam.pictures import TrainingRecord


class Journal:
    """One line of metrics an iteration, in metrics.jsonl; holds nothing that depends on the clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)

    @property
    def size(self) -> int:
        """Bytes written so far; a checkpoint keeps the number, so that resuming can cut what came after it."""
        os.fsync(self._stream.fileno())
        return self._stream.seek(0, os.SEEK_END)

    def cut(self, size: int) -> None:
        """Forget everything after the first `size` bytes; BadInputError if there are not that many."""
        there = self._stream.seek(0, os.SEEK_END)
        if there < size:
            raise BadInputError(f"{self.path}: {there} of {size} bytes are left; restore it or train with --overwrite")
        os.truncate(self.path, size)

    def write(self, stage: str, iteration: int, learning_rate: float, terms: Mapping[str, float]) -> None:
        """Add one iteration; a term that is not finite becomes null. ResourceError if the disk refuses."""
        finite = {name: value if math.isfinite(value) else None for name, value in terms.items()}
        entry = {"stage": stage, "iteration": iteration, "learning_rate": learning_rate, "terms": finite}
        line = json.dumps(entry).encode() + b"\n"
        try:
            written = self._stream.write(line)
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written ({error.strerror}); free the disk") from error
        if written != len(line):
            raise ResourceError(f"{self.path}: cannot be written whole; free the disk")

    def records(self) -> list[TrainingRecord]:
        """All lines so far."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
