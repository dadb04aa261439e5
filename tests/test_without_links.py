"""A checkout on a system without symbolic links, where git writes links as text files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKS = "cli.py", "kernels", "shards"


COPIED = [
    part
    for line in (ROOT / "Dockerfile").read_text().splitlines()
    if line.startswith("COPY ")
    for part in line.split()[1:-1]
]
"""What the image is made of."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What the image is made of, with links and with texts; without the demo's recordings."""
    made = []
    for name in ("links", "texts"):
        tree = tmp_path_factory.mktemp(name)
        for part in COPIED:
            ignored = shutil.ignore_patterns("__pycache__", "*.flac", "*.ogg", "*.wav")
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / part, tree / part)
        made.append(tree)
    for name in LINKS:
        link = made[1] / "unfused_fast" / name
        target = link.readlink().as_posix()
        link.unlink()
        link.write_text(target)
    return made[0], made[1]


def run(tree: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_image_is_given_what_it_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith(("#", "!", "**/"))] == ["*"]
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(COPIED)


def test_the_checkout_runs(trees: tuple[Path, Path]) -> None:
    code = "import unfused_fast.cli, unfused_fast.kernels.assign; from unfused_fast.shards.sets import table as found"
    code += "; print(found.__file__)"
    assert run(trees[1], "-c", code).strip() == str(trees[1] / "shards/sets/table.py")
    assert "shard" in run(trees[1], "-m", "unfused_fast", "--help")


def test_its_wheel_has_the_same_files(trees: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="older ones do not read this pyproject.toml")
    found = []
    for tree in trees:
        code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path / tree.name)!r}))"
        name = run(tree, "-c", code).splitlines()[-1]
        with zipfile.ZipFile(tmp_path / tree.name / name) as wheel:
            found.append({file: wheel.read(file) for file in wheel.namelist() if not file.endswith("RECORD")})
    assert found[0] == found[1]
    assert {"unfused_fast/cli.py", "unfused_fast/kernels/assign.py", "unfused_fast/shards/sets/table.py"} <= found[
        1
    ].keys()
    assert found[1]["unfused_fast/cli.py"] == (ROOT / "cli.py").read_bytes()
