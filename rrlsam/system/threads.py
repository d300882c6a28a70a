"""ITK's own threads, where they must be tamed."""

import contextlib
import threading
from collections.abc import Iterator

import SimpleITK as sitk


class _Tamed:
    """How many users want one thread at the moment, and ITK's number of threads before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = 1


_TAMED = _Tamed()


@contextlib.contextmanager
def one_itk_thread() -> Iterator[None]:
    """ITK runs each operation in one thread while anyone is inside; the former number returns with the last one.

    Needed for results that are the same to the last bit: mutual information sums its gradient in ITK's default number
    of threads, whatever the registration was told, and so in another order each time.
    """
    with _TAMED.lock:
        if _TAMED.users == 0:
            _TAMED.before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        _TAMED.users += 1
    try:
        yield
    finally:
        with _TAMED.lock:
            _TAMED.users -= 1
            if _TAMED.users == 0:
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(_TAMED.before)
