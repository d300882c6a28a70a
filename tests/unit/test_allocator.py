"""Freed memory stays with the process that asked for it."""

import subprocess
import sys

import pytest

from rrlsam.system import allocator
from rrlsam.system.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from rrlsam.system.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
blocks = [4 << 20, 60 << 20]  # 16 and 240 MB: below and above what glibc never keeps by itself
for _ in range(12):  # until the heap has its holes in the right sizes: one to five rounds were seen
    sums = [float(torch.ones(n).sum()) for n in blocks]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    sums = [float(torch.ones(n).sum()) for n in blocks]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of five rounds of allocating, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another C library")
def test_large_tensors_come_from_memory_that_was_freed_before():
    assert faults("keep") * 4 < faults("leave")


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
