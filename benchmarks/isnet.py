"""ISNet as a stand-in for SAM: truly pretrained, and of its contract (1024 px in, 1 x 256 x 64 x 64 out).

The network is the medium model of the npm package @imgly/background-removal-data 1.4.5. The package is AGPL-3.0: npm
fetches it when it is used for the first time, and nothing of it is kept in this repository. Needs npm, onnx and
onnxruntime.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rrlsam.nets.sam import PIXEL_MEAN, PIXEL_STD, SamTeacher
from rrlsam.system.files import atomic_write, sha256

PACKAGE = "@imgly/background-removal-data@1.4.5"
SHA512 = "iRXZpPd7YirbJ4eOZ3SlvbdJkAc/LxVjzWLMHOezmRrVThPJPdPc+Y2kHEAVFEVvpDIuvBDyOfTTFBSJT2QR5w=="
"""Of the package's file, base64, as the registry states it."""
MODEL_SHA256 = "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb"
LAYER = "input.832"
SIDE_PX, TOKEN_PX = 1024, 16


def isnet_teacher(folder: Path, *, seed: int | None = None) -> SamTeacher:
    """ISNet, fetched into `folder` if it is not there; with a seed its random twin, each layer's weights shuffled."""
    encoder = IsnetEncoder(_features_only(fetch_isnet(folder), seed))
    return SamTeacher(encoder, SIDE_PX, TOKEN_PX, reduced_precision=False)


def fetch_isnet(folder: Path) -> Path:
    """The model's file, checked."""
    path = folder / "isnet_medium.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
        (package,) = folder.glob("*background-removal-data-1.4.5.tgz")
        digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise SystemExit(f"{package}: is not the package that was published; delete it")
        with atomic_write(path) as temporary:
            temporary.write_bytes(_joined(package))
    if sha256(path) != MODEL_SHA256:
        raise SystemExit(f"{path}: is not the model that was measured; delete it")
    return path


def _joined(package: Path) -> bytes:
    """The medium model, put together from the package's chunks."""
    with tarfile.open(package) as archive:

        def member(name: str) -> bytes:
            stream = archive.extractfile(f"package/dist/{name}")
            if stream is None:
                raise SystemExit(f"{package}: {name} is not a file")
            return stream.read()

        chunks = json.loads(member("resources.json"))["/models/medium"]["chunks"]
        return b"".join(member(chunk["hash"]) for chunk in chunks)


def _features_only(path: Path, seed: int | None) -> bytes:
    """The graph up to the layer; with a seed, each layer's weights in random order and no biases, which would drown
    what the image says."""
    import onnx
    from onnx.utils import Extractor

    graph = Extractor(onnx.load(path)).extract_model(["input"], [LAYER])
    if seed is not None:
        random = np.random.default_rng(seed)
        for weights in graph.graph.initializer:
            array = onnx.numpy_helper.to_array(weights)
            shuffled = random.permutation(array.reshape(-1)).reshape(array.shape) * (array.ndim > 1)
            weights.CopyFrom(onnx.numpy_helper.from_array(shuffled, weights.name))
    return graph.SerializeToString()


class IsnetEncoder(nn.Module):
    """ISNet's features of images that were normalised for SAM, normalised over channels as SAM's own are."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other work may run beside it
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._mean, self._std = (torch.tensor(rgb)[:, None, None] for rgb in (PIXEL_MEAN, PIXEL_STD))

    def forward(self, images: Float[Tensor, "1 3 1024 1024"]) -> Float[Tensor, "1 256 64 64"]:
        """From SAM's normalisation back to [0, 255], to ISNet's."""
        shown = (images * self._std + self._mean - 128) / 256
        (features,) = self._session.run([LAYER], {"input": shown.float().numpy()})
        channels_last = torch.from_numpy(np.asarray(features, np.float32)).movedim(1, 3)
        return functional.layer_norm(channels_last, channels_last.shape[3:], eps=1e-12).movedim(3, 1)
