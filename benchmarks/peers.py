"""Registration tools from PyPI, one scan a process: the atlas's label brought to a scan.

    python benchmarks/peers.py PEER FIXED MOVING LABEL OUT --threads N --seed S

Writes the warped label to OUT and prints one line of JSON: seconds, CPU seconds, peak memory, folded voxels, version.
No peer is tuned; settings are the tool's own, or those of its first tutorial, and stand below.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from rrlsam.geometry import geometry_of, itk_affine
from rrlsam.nets.jacobian import fold_percent
from rrlsam.preprocessing.affine import align, alignment_image
from rrlsam.registration.pair import in_voxels
from rrlsam.scans.volume import channels_first, channels_of, read_channels, read_labels, to_canonical, write_like

GREEDY_AFFINE = "-a -dof 12 -ia-image-centers -m NCC 2x2x2 -n 100x50x10"
GREEDY_FIELD = "-m NCC 2x2x2 -n 100x100x50 -s 1.5vox 0.7vox"
DIPY_ITERATIONS = (40, 20, 5)
"""Coarse to fine; levels of DIPY_SMALLEST voxels or less on an axis are refused by its metric and left out."""
DIPY_SMALLEST = 9
DEMONS_LEVELS = ((4, 60), (2, 40), (1, 20))
"""Shrink factor and iterations."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a peer is given."""

    fixed: Path
    moving: Path
    label: Path
    threads: int
    seed: int


Found = tuple[np.ndarray, "sitk.Image | None"]
"""The warped label (z, y, x) on the fixed grid, and the displacement field in LPS mm on the fixed grid."""


def ants_syn(pair: Pair) -> Found:
    """`ants.registration(fixed, moving, "SyN")`, nothing else."""
    return _ants(pair, "SyN", affine_first=False)


def ants_syn_only(pair: Pair) -> Found:
    """`"Affine"`, then `"SyNOnly"` from there."""
    return _ants(pair, "SyNOnly", affine_first=True)


def _ants(pair: Pair, kind: str, *, affine_first: bool) -> Found:
    import ants

    ants.config.set_ants_deterministic(on=True, seed_value=pair.seed)
    fixed, moving = ants.image_read(str(pair.fixed)), ants.image_read(str(pair.moving))
    with tempfile.TemporaryDirectory() as folder:
        options = {"outprefix": f"{folder}/found_"}
        if affine_first:
            start = ants.registration(fixed, moving, "Affine", outprefix=f"{folder}/affine_")["fwdtransforms"]
            options["initial_transform"] = start[0]
        found = ants.registration(fixed, moving, kind, **options)
        label = ants.image_read(str(pair.label))
        warped = ants.apply_transforms(fixed, label, found["fwdtransforms"], interpolator="genericLabel")
        array = np.asarray(warped.numpy()).round().astype(np.uint8).transpose(2, 1, 0)
        return np.ascontiguousarray(array), sitk.ReadImage(found["fwdtransforms"][0], sitk.sitkVectorFloat64)


def greedy(pair: Pair) -> Found:
    """Affine and field with NCC, three levels, labels by LABEL interpolation."""
    from picsl_greedy import Greedy3D

    with tempfile.TemporaryDirectory() as folder:
        affine, field, warped = (str(Path(folder) / name) for name in ("affine.mat", "warp.nii.gz", "label.nii.gz"))
        images, threads = f"-i {pair.fixed} {pair.moving}", f"-threads {pair.threads}"
        tool = Greedy3D()
        with _Silence():
            tool.execute(f"{images} {GREEDY_AFFINE} {threads} -o {affine}")
            tool.execute(f"{images} {GREEDY_FIELD} {threads} -it {affine} -o {field}")
            tool.execute(f"-rf {pair.fixed} -ri LABEL 0.2vox -rm {pair.label} {warped} -r {field} {affine} {threads}")
        return sitk.GetArrayFromImage(sitk.ReadImage(warped)), sitk.ReadImage(field, sitk.sitkVectorFloat64)


def dipy_syn(pair: Pair) -> Found:
    """Centre of mass, rigid and affine by mutual information, then SyN with cross-correlation."""
    from dipy.align import affine_registration
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    fixed, moving = (read_channels((path,)) for path in (pair.fixed, pair.moving))
    label = read_labels(pair.label)
    (f, fw), (m, mw), (labels, lw) = (_dipy(image) for image in (fixed, moving, label))
    smallest = min(*f.shape, *m.shape)
    fine_to_coarse = [n for i, n in enumerate(DIPY_ITERATIONS[::-1]) if smallest // 2**i > DIPY_SMALLEST]
    with _Silence():
        _, start = affine_registration(m, f, moving_affine=mw, static_affine=fw)
        found = SymmetricDiffeomorphicRegistration(CCMetric(3), level_iters=fine_to_coarse[::-1]).optimize(
            f, m, static_grid2world=fw, moving_grid2world=mw, prealign=start
        )
    warped = found.transform(
        labels, interpolation="nearest", image_world2grid=np.linalg.inv(lw), out_shape=f.shape, out_grid2world=fw
    )
    field = sitk.GetImageFromArray(np.ascontiguousarray(found.get_forward_field().transpose(2, 1, 0, 3)), isVector=True)
    field.CopyInformation(fixed)
    return np.ascontiguousarray(warped.transpose(2, 1, 0)).astype(np.uint8), sitk.Cast(field, sitk.sitkVectorFloat64)


def _dipy(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Array (x, y, z) and its affine to the world, here LPS throughout."""
    return channels_first(image)[0].transpose(2, 1, 0).astype(np.float64), geometry_of(image).matrix


def demons(pair: Pair) -> Found:
    """SimpleITK's fast symmetric forces demons, three levels, after rrlsam's affine and histogram matching."""
    fixed, moving = (channels_of(read_channels((path,)))[0] for path in (pair.fixed, pair.moving))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(pair.threads)
    a, b = (to_canonical(image) for image in (fixed, moving))
    found = align(*(alignment_image(channels_first(image), geometry_of(image)) for image in (a, b)))
    affine = itk_affine(np.array(found.matrix))
    start = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    start = sitk.HistogramMatching(start, fixed, 256, 7)
    field = None
    for shrink, iterations in DEMONS_LEVELS:
        if min(fixed.GetSize()) // shrink < 8:
            continue
        small_fixed, small_moving = (_shrink(image, shrink) for image in (fixed, start))
        tool = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        tool.SetNumberOfIterations(iterations)
        tool.SetStandardDeviations(1.5)
        if field is None:
            field = tool.Execute(small_fixed, small_moving)
        else:
            field = tool.Execute(small_fixed, small_moving, sitk.Resample(field, small_fixed))
    if field is None:
        raise SystemExit(f"{pair.fixed}: too small for demons")
    full = sitk.Cast(sitk.Resample(field, fixed), sitk.sitkVectorFloat64)
    chain = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Image(full))])
    warped = sitk.Resample(read_labels(pair.label), fixed, chain, sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(warped).astype(np.uint8), full


def _shrink(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    return sitk.Shrink(
        sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()]), [factor] * 3
    )


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A registration tool."""

    title: str
    """In tables of results."""
    distribution: str
    """That it comes from."""
    run: Callable[[Pair], Found]


PEERS = {
    "ants_syn": Peer(title="ANTs SyN, default settings", distribution="antspyx", run=ants_syn),
    "ants_syn_only": Peer(title="ANTs SyNOnly after affine", distribution="antspyx", run=ants_syn_only),
    "greedy": Peer(title="greedy", distribution="picsl-greedy", run=greedy),
    "dipy_syn": Peer(title="DIPY SyN", distribution="dipy", run=dipy_syn),
    "demons": Peer(title="SimpleITK demons", distribution="SimpleITK", run=demons),
}


class _Silence:
    """Send the standard output of compiled code to nowhere."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self._kept = os.dup(1)
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self._nowhere, 1)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._kept, 1)
        os.close(self._kept)
        os.close(self._nowhere)


def main() -> None:
    """Run one peer on one pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    for name in ("fixed", "moving", "label", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    pair = Pair(**{name: getattr(arguments, name) for name in ("fixed", "moving", "label", "threads", "seed")})
    began, cpu = time.monotonic(), time.process_time()
    label, field = peer.run(pair)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    write_like(label.astype(np.uint8), read_channels((arguments.fixed,)), arguments.out)
    report = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "fold_percent": None if field is None else fold_percent(in_voxels(channels_first(field), geometry_of(field))),
        "version": f"{peer.distribution} {version(peer.distribution)}",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
