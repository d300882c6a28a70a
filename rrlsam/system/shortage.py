"""What libraries say when the machine lacks memory or a device, in our words."""

import contextlib
import re
from collections.abc import Iterator

from rrlsam.errors import DeviceLostError, GpuMemoryError, ResourceError

_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|failed to allocate|unable to allocate|bad_alloc"
    r"|can't start new thread|failed to map segment",
    re.IGNORECASE,
)
_GPU_MEMORY = re.compile(r"(CUDA|HIP|GPU).*out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE | re.DOTALL)
_GPU = re.compile(r"CUDA error|HIP error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|No CUDA GPUs|device-side")


def shortage_of(error: Exception) -> ResourceError | None:
    """The shortage that an error tells of, or None if it tells of something else."""
    if isinstance(error, ResourceError):
        return error
    if not isinstance(error, MemoryError | RuntimeError | ImportError):
        return None
    text, kind = str(error), type(error).__name__
    lines = [line.strip()[:200] for line in text.splitlines() if line.strip()] or [kind]
    reason = next((line for line in lines if _MEMORY.search(line)), lines[0])
    if kind == "OutOfMemoryError" or _GPU_MEMORY.search(text):
        return GpuMemoryError(
            f"not enough memory on the GPU ({reason}); use -device cpu, or plan for less with -gpu_memory_target or "
            "-pl low_memory and train again"
        )
    if kind == "AcceleratorError" or _GPU.search(text):
        return DeviceLostError(
            f"the GPU answers no longer ({reason}); look at it with nvidia-smi, then go on with --c "
            "(--continue_prediction), or use -device cpu"
        )
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return ResourceError(
            f"not enough memory ({reason}); close other programs, use fewer workers (-np 1), or plan for less with "
            "-gpu_memory_target or -pl low_memory"
        )
    return None


@contextlib.contextmanager
def shortages_told() -> Iterator[None]:
    """What libraries raise inside for lack of something becomes a ResourceError."""
    try:
        yield
    except Exception as error:
        told = shortage_of(error)
        if told is None or told is error:
            raise
        raise told from error
