"""Build a wheel, unpack it into an empty folder, and see that it holds what it must and nothing else."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    "rrlsam/py.typed",
    "rrlsam/demo/cases.json",
    "rrlsam/demo/LICENSE-DATA.md",
    "rrlsam/planners/one_shot.py",
    "rrlsam/trainers/one_shot.py",
)
IMPORT = """
import sys, rrlsam, rrlsam.planners.one_shot, rrlsam.trainers.one_shot, rrlsam.cli.train
for module in (rrlsam, rrlsam.planners.one_shot, rrlsam.trainers.one_shot):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""


def main() -> int:
    """Exit code 0 if the wheel is sound."""
    had_build = (ROOT / "build").exists()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _check(Path(folder).resolve())
    finally:
        if not had_build:
            shutil.rmtree(ROOT / "build", ignore_errors=True)


def _check(folder: Path) -> int:
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("rrlsam-*.whl")
    installed = folder / "installed"
    _pip("install", "--no-deps", "--target", str(installed), str(wheel))
    problems = _problems(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT, str(installed)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        problems.append(f"cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    size = wheel.stat().st_size / 1e6
    sys.stdout.write(f"{wheel.name}: {'; '.join(problems) or f'{size:.1f} MB, as it must be'}\n")
    return 1 if problems else 0


def _problems(installed: Path) -> list[str]:
    top = {path.name for path in installed.iterdir() if path.name != "bin"}
    information = {name for name in top if name.startswith("rrlsam-") and name.endswith(".dist-info")}
    problems = [f"installs {name} too" for name in sorted(top - information - {"rrlsam"})]
    problems += [f"lacks {name}" for name in NEEDED if not (installed / name).is_file()]
    for part in ("images", "labels"):
        here = {path.name for path in (ROOT / "rrlsam" / "demo" / part).glob("*.nii.gz")}
        there = {path.name for path in (installed / "rrlsam" / "demo" / part).glob("*.nii.gz")}
        if here != there or not here:
            problems.append(f"holds {len(there)} of {len(here)} demo {part}")
    for name in ("LICENSE", "LICENSE-DATA.md"):
        if not any(path.name == name for folder in information for path in (installed / folder).rglob("*")):
            problems.append(f"lacks the licence file {name}")
    return problems


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
