"""Freed memory is kept for the next tensor: to get a page anew costs more than to compute on it."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""glibc's mallopt parameters: free memory at the top of the heap that is given back, number of mappings."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees until it ends; its peak stays as it is. Whether the C library could.

    glibc gives every large block back to the system and takes it anew, page fault by page fault, for the next tensor.
    Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
