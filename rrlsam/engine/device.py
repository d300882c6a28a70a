"""Which device trains, and in which precision."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from rrlsam.errors import ResourceError
from rrlsam.system.resources import usable_cores


@dataclass(frozen=True)
class Device:
    """A device with the number format in which it multiplies."""

    name: str
    precision: torch.dtype
    reason: str
    """One line: what was taken and why."""

    @property
    def place(self) -> torch.device:
        """The torch device."""
        return torch.device(self.name)

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it pays."""
        return torch.autocast(self.name, dtype=self.precision, enabled=self.precision != torch.float32)


def choose_device(choice: str = "auto") -> Device:
    """The device asked for, or the best there is; ResourceError if it is not there."""
    gpu = torch.cuda.is_available()
    if choice not in ("auto", "cpu") and not (choice == "cuda" and gpu):
        raise ResourceError(f"-device {choice}: no such device on this machine; use -device cpu or -device auto")
    name = choice if choice != "auto" else "cuda" if gpu else "cpu"
    why = "asked for" if choice != "auto" else "no GPU was found" if name == "cpu" else "the fastest found"
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # scans are sampled there with a GPU too
    quick = _gpu_multiplies_bfloat16(torch.device(name)) if name == "cuda" else _multiplies_bfloat16()
    precision, label = (torch.bfloat16, "bfloat16") if quick else (torch.float32, "float32")
    detail = torch.cuda.get_device_name() if name == "cuda" else f"{torch.get_num_threads()} threads"
    return Device(name, precision, f"device {name} ({detail}, {label}): {why}")


def _gpu_multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA GPU has instructions for bfloat16; torch says yes where it emulates them too."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; emulated bfloat16 would be slower than float32."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
