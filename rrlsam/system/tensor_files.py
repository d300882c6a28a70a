"""Reading files of tensors without running any code in them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from rrlsam.errors import BadInputError


def load_plain(source: Path | BytesIO, damaged: BadInputError) -> Any:
    """What torch.save wrote, as long as it is tensors and plain types, on the CPU.

    OSError where the file cannot be opened; `damaged` for everything else that goes wrong, since a damaged file makes
    torch's readers raise nearly anything.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise damaged from error
