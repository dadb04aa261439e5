"""What the tests of the whole path share: tiny labelled and unlabelled shard sets, a tiny network, the command line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from precisions import settings

from unfused_fast.cli import app
from unfused_fast.commands.exits import run_app
from unfused_fast.console import console
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow

RATE = 16000
CLASSES = {"low": 300, "middle": 1200, "high": 3600}
"""Label -> centre of its tone and noise, in hertz."""
CLIPS = {"train": 60, "valid": 18, "test": 18}
TINY = (
    "model.channels=4 model.dim=32 model.proj_hidden=32 model.proj_dim=16 cluster.k=4 train.batch_size=16 "
    "train.amp=fp32 aug.mixup.memory=32"
)
NUMERICS = pytest.StashKey[dict[str, object]]()


def pytest_configure() -> None:
    """Processes that tests start do not ignore Ctrl-C, though a shell started the tests in the background."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """As in a new process, before the fixtures that the test is the first to ask for: what is said once was not said.
    One thread: tiny networks are fastest on one, and tests that run side by side do not slow each other.
    """
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    console.said.clear()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    item.stash[NUMERICS] = _numerics()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fails a test that leaves PyTorch set otherwise: runs that later tests compare would have other bits."""
    yield
    now = _numerics()
    before = item.stash.get(NUMERICS, now)  # not there where the test was skipped at once
    changed = {name: f"was {before[name]}, now {value}" for name, value in now.items() if value != before[name]}
    assert not changed, f"PyTorch is left set otherwise than it was before the test: {changed}"


def _numerics() -> dict[str, object]:
    """What the bits that PyTorch computes depend on, beside what it is given."""
    return {
        "threads": torch.get_num_threads(),
        "denormals": bool(torch.tensor([1e-40]) * 1 > 0),
        "fp32_precision": [setting.fp32_precision for setting in settings()],
        "oneDNN": torch._C._get_mkldnn_enabled(),
        "NNPACK": torch._C._get_nnpack_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
    }


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of standard error that begins with `error:`, without that; and no traceback was shown."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")


Cli = Callable[..., Outcome]


def _run(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["unfused-fast", *map(str, arguments)])
        patch.delenv("UNFUSED_DEBUG", raising=False)
        patch.setenv("COLUMNS", "200")
        console.said.clear()  # as in a process of its own
        code = 0
        try:
            run_app(app)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("train", "pretrain", path, ...)` runs the command line in this process, as `unfused-fast` would."""
    return _run


@pytest.fixture(scope="session")
def cli_process() -> Callable[..., subprocess.Popen[str]]:
    """`cli_process("train", ...)` starts the command line in a process of its own, in a session of its own; the caller
    waits. `variables` are of its environment.
    """

    def start(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "unfused_fast", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **variables},
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a very small network on the CPU, for `train ...`."""
    return ["--device", "cpu", *(word for value in TINY.split() for word in ("--set", value))]


@pytest.fixture(scope="session")
def tiny_any() -> list[str]:
    """Those that every method reads."""
    read = [value for value in TINY.split() if not value.startswith("cluster.")]
    return ["--device", "cpu", *(word for value in read for word in ("--set", value))]


@pytest.fixture(scope="session")
def tiny_heads() -> list[str]:
    """Those that stage 3 reads."""
    read = [value for value in TINY.split() if value.startswith("model.")]
    return ["--device", "cpu", *(word for value in read for word in ("--set", value))]


def tone(generator: np.random.Generator, hertz: float, seconds: float) -> np.ndarray:
    """A tone near `hertz` in a band of noise around it, with a little white noise: classes differ, clips too."""
    times = np.arange(round(seconds * RATE)) / RATE
    pitch, width = hertz * generator.uniform(0.85, 1.15), hertz * 0.3
    spectrum = np.fft.rfft(generator.standard_normal(len(times)))
    away = (np.fft.rfftfreq(len(times), 1 / RATE) - pitch) / width
    band = np.fft.irfft(spectrum * np.exp(-(away**2)), len(times))
    signal = 0.3 * np.sin(2 * np.pi * (pitch * times + generator.uniform())) + 0.2 * band / band.std()
    return (signal + 0.01 * generator.standard_normal(len(times))) * generator.uniform(0.2, 0.6)


@pytest.fixture(scope="session")
def tone_rows(tmp_path_factory: pytest.TempPathFactory) -> list[SourceRow]:
    """60 train, 18 valid and 18 test clips of three classes, 1.0 to 1.3 s, six clips a group; classes are separable."""
    folder, generator, rows = tmp_path_factory.mktemp("tones"), np.random.default_rng(0), []
    for split, clips in CLIPS.items():
        for number in range(clips):
            label = list(CLASSES)[number % 3]
            path = folder / f"{split}-{number:02d}-{label}.wav"
            soundfile.write(path, tone(generator, CLASSES[label], 1.0 + 0.3 * generator.uniform()), RATE)
            rows.append(SourceRow(path, path.name, label, split, f"{split}-speaker{number // 6}"))
    return rows


PackRows = Callable[..., Path]


@pytest.fixture(scope="session")
def pack_rows() -> PackRows:
    """`pack_rows(rows, out)` packs rows, 25 clips a shard, with log-mel statistics; gives `out`."""

    def packed(rows: list[SourceRow], out: Path) -> Path:
        pack(rows, out, workers=0, clips_per_shard=25, statistics=log_mel_statistics)
        return out

    return packed


@pytest.fixture(scope="session")
def tones(tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of `tone_rows` packed: a shard set not to be written to."""
    return pack_rows(tone_rows, tmp_path_factory.mktemp("sets") / "tones")


@pytest.fixture(scope="session")
def unlabelled(tone_rows: list[SourceRow], pack_rows: PackRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train clips of `tone_rows` without labels and groups: a shard set not to be written to."""
    rows = [SourceRow(row.path, row.source) for row in tone_rows if row.split == "train"]
    return pack_rows(rows, tmp_path_factory.mktemp("sets") / "unlabelled")


@pytest.fixture(scope="session")
def pretrained(cli: Cli, tones: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of `train pretrain`, two epochs on `tones`: a run not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    done = cli("train", "pretrain", tones, "--out", out, "--epochs", 2, *tiny)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def pretrain(cli: Cli, tiny: list[str]) -> Cli:
    """`pretrain(shards, out, ...)`: two tiny epochs, the settings of the run `pretrained`."""
    return lambda shards, out, *more: cli("train", "pretrain", shards, "--out", out, "--epochs", 2, *tiny, *more)


@pytest.fixture
def distill(cli: Cli, tiny: list[str]) -> Cli:
    return lambda shards, teacher, out, *more: cli(
        "train", "distill", shards, "--teacher", teacher, "--out", out, "--epochs", 1, *tiny, *more
    )


@pytest.fixture
def linear(cli: Cli, tiny_heads: list[str]) -> Cli:
    return lambda shards, encoder, out, *more: cli(
        "train", "linear", shards, "--encoder", encoder, "--out", out, "--epochs", 2, *tiny_heads, *more
    )


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a set or run, to be damaged."""
    caches = shutil.ignore_patterns("*.cache")  # a run that finds log-mels does not read the audio
    return lambda path: Path(shutil.copytree(path, tmp_path / f"copy of {path.name}", ignore=caches))


@pytest.fixture
def unfinished(copy_of: Callable[[Path], Path], pretrained: Path) -> Path:
    """The run `pretrained`, whose result is not yet written."""
    run = copy_of(pretrained)
    (run / "result.json").unlink()
    return run
