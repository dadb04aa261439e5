"""Runs the command line on several ranks, all processes forked from one that has imported everything.

python tests/support/ranks.py     reads requests from standard input, one a line: {"jobs": [...], "environment": {...},
                                  "folder": ...}, of jobs {"ranks": N, "arguments": [...]}; prints for each request, in
                                  a line, a list of lists of {"code", "said"}, one for each rank, or a traceback

Keys of a job, beside those:

"stop_after": M           the last rank sends itself SIGTERM after M steps
"stop_between": true      ... at the end of an epoch, once the ranks told each other that none got one
"slow_saves": FOLDER      a checkpoint takes three seconds, and each rank says at its end which ones the folder holds
"usual": true             with layouts and kernels of a process of its own, see below
"flat": true              the network is one whose clusters have collapsed
"check": NAME             ranks run no command, but what `check` names
"script": [NAME, ...]     they run no command, but the script NAME.py beside this one, with arguments
"in": [FOLDER, ...]       each rank runs in a folder of its own, as on machines that share none
"killed": true            the last rank is killed in the first pass over the clips
"gone": FILE              the last rank removes it at the end of an epoch
"full": "pass", "saves"   the disk is full for the last rank in that pass, or for the first rank when it saves
"little": true            the last rank has 1000 bytes of memory

Networks are not laid out channels last here: torch's BatchNorm of such a batch on a CPU adds up to 6e-5 of error, where
that of several ranks adds 4e-7; and without oneDNN and NNPACK a convolution of a part of a batch is that part of the
whole, bit for bit.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_on_ranks import check_bank
from collapsing import FlatProjector
from kmeans_on_ranks import check_kmeans
from layers_on_ranks import check_layers
from stopping import after_calls, signalled_after

from unfused_fast.cli import app
from unfused_fast.commands.exits import run_app
from unfused_fast.config import Config
from unfused_fast.data import dali as pipeline
from unfused_fast.data import first_pass, store
from unfused_fast.data.stream import Batch, Loader
from unfused_fast.distributed.ranks import Ranks
from unfused_fast.embedding import embed_files, embed_rows, load, reading
from unfused_fast.errors import Interrupted, UserError
from unfused_fast.launch import place_of
from unfused_fast.memory import Free
from unfused_fast.models import audiontt as model
from unfused_fast.models import efficientnet
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages import features
from unfused_fast.training import checkpoint, loop, saves
from unfused_fast.training.progress import EpochProgress

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("train", {}),
    "left out": ("train", {"left_out": [2, 11, 12, 59]}),
    "resident": ("train", {"store": "resident", "read_again": True}),
    "few": ("test", {}),
}
"""What save_features saves."""
HEAVY = (
    *("matplotlib.pyplot", "torch.utils.tensorboard", "zarr", "torch._dynamo", "torch.distributed", "faiss"),
    *("sklearn.metrics", "scipy.stats", "pydantic.dataclasses", "typer.main"),
    "pandas",  # by pyarrow, where it is there
)
"""What commands import as they go."""
USUAL = [
    (owner, name, getattr(owner, name))
    for owner, name in ((loop, "prepare_for"), (model, "channels_last"), (efficientnet, "channels_last"))
]
"""What `prepare` replaces."""
TO_THE_END = contextlib.ExitStack()
"""What holds until the process ends."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def begin(job: dict[str, Any], own: dict[str, str], said: Path) -> int:
    """Starts a job's work in a process; its id."""
    sys.stdout.flush()
    started = os.fork()
    if started:
        return started
    try:
        os.environ.update(own)
        with said.open("a") as file, Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if job.get("usual"):
            for owner, name, original in USUAL:
                setattr(owner, name, original)
            torch.backends.mkldnn.set_flags(True)
            torch.backends.nnpack.set_flags(True)
        if job.get("check"):
            check(job, own)
            os._exit(0)
        if "stop_after" in job and own["RANK"] == str(job["ranks"] - 1):
            TO_THE_END.enter_context(signalled_after(job["stop_after"]))
        if job.get("stop_between") and own["RANK"] == str(job["ranks"] - 1):
            sent = partial(os.kill, os.getpid(), signal.SIGTERM)
            TO_THE_END.enter_context(after_calls(EpochProgress, "epoch", 1, sent))
        if "gone" in job and own["RANK"] == str(job["ranks"] - 1):
            TO_THE_END.enter_context(after_calls(EpochProgress, "epoch", 1, Path(job["gone"]).unlink))
        if job.get("killed") and own["RANK"] == str(job["ranks"] - 1):
            Loader.whole_clips = lambda loader: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        if job.get("full") == "pass" and own["RANK"] == str(job["ranks"] - 1):
            first_pass.FRAMES = "/dev/full"  # type: ignore[attr-defined]
        if job.get("full") == "saves" and own["RANK"] == "0":
            checkpoint.save_file = full  # type: ignore[attr-defined]
        if job.get("little") and own["RANK"] == str(job["ranks"] - 1):
            store.free_memory = lambda device: Free(0, 1000)  # type: ignore[attr-defined]
        if "in" in job:
            os.chdir(job["in"][int(own["RANK"])])
        if "slow_saves" in job:
            slow_saves()
        if job.get("flat"):
            model.Projector = FlatProjector  # type: ignore[misc]
        if "script" in job:
            name, *sys.argv[1:] = job["script"]
            sys.exit(importlib.import_module(name).main())
        sys.argv[1:] = job["arguments"]
        run_app(app)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
        if "slow_saves" in job:
            print("at the end:", *sorted(path.name for path in Path(job["slow_saves"]).glob("*.json")), flush=True)
        sys.stdout.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def full(*_: Any, **__: Any) -> None:
    """Writes to a disk that is full."""
    with Path("/dev/full").open("w") as file:
        file.write("full")


def slow_saves() -> None:
    """Makes a checkpoint take three seconds."""
    original = saves.save_checkpoint

    def save_checkpoint(*arguments: Any) -> Path:
        time.sleep(3)
        return original(*arguments)

    saves.save_checkpoint = save_checkpoint


def check(job: dict[str, Any], own: dict[str, str]) -> None:
    """The checks of a job, on its ranks."""
    refused = (UserError,) if job["check"] == "error" else ()
    with contextlib.suppress(*refused), Ranks(place_of(own), torch.device("cpu"), 30.0) as ranks:
        if job["check"] == "error":
            ranks.first(refuse)
        elif job["check"] == "bank":
            check_bank(ranks, Path(job["folder"]))
        elif job["check"] == "kmeans":
            check_kmeans(ranks)
        elif job["check"] == "first pass":
            stopped_pass(Path(job["shards"]), job["sent"])
        elif job["check"] == "embed":
            embed_folder(ranks, job)
        elif job["check"] == "features":
            save_features(ranks, Path(job["folder"]), Path(job["shards"]), Path(job["encoder"]))
        else:
            check_layers(ranks)
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), "such threads may abort a process that ends"


def stopped_pass(shards: Path, sent: int) -> None:
    """A first pass over a set whose process gets a signal after one batch."""
    original = Loader.whole_clips

    def stopped(loader: Loader) -> Iterator[Batch]:
        yield next(original(loader))
        os.kill(os.getpid(), sent)

    Loader.whole_clips = stopped  # type: ignore[method-assign]
    store.placed(Loader(open_shards(shards), "train", Config(), device=torch.device("cpu"), batch_size=8), "mmap")


def refuse() -> None:
    """The error of a user."""
    raise UserError("no")


def save_features(ranks: Ranks, folder: Path, shards: Path, run: Path) -> None:
    """Features by a run's encoder, by convolutions whose last bits may depend on the batch: KIND-RANKS.npy."""
    torch.backends.mkldnn.set_flags(True)
    encoder, opened = features.load_encoder(run, ranks.device), open_shards(shards)
    for kind, (split, options) in FEATURES.items():
        rows = features.extract(encoder, opened, split, "encoder", "maxmean", ranks.device, **options, ranks=ranks)
        if ranks.leads:
            np.save(folder / f"{kind}-{ranks.world_size}.npy", rows.numpy())
        else:
            assert rows.shape == (0, 32)


def embed_folder(ranks: Ranks, job: dict[str, Any]) -> None:
    """Embeds the files of "folder" by a run's encoder to "out"; the last rank stops after "stops" batches."""
    torch.backends.mkldnn.set_flags(True)
    embedder, batches = load(job["encoder"], "cpu"), list[int]()

    def stopping() -> bool:
        batches.append(1)
        return ranks.rank == ranks.world_size - 1 and len(batches) > job.get("stops", len(batches))

    try:
        embed_files(
            embedder, embed_rows([job["folder"]], print), Path(job["out"]), workers=0, stopping=stopping, ranks=ranks
        )
    except Interrupted as stopped:
        print(stopped)


def run(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The job on each rank to its end."""
    ranks, port = job["ranks"], free_port()
    said = [folder / f"{port}-{rank}" for rank in range(ranks)]
    owns = [environment(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    processes = [begin(job, own, file) for own, file in zip(owns, said, strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return [{"code": code, "said": file.read_text()} for code, file in zip(codes, said, strict=True)]


def prepare() -> None:
    """Imports once what every process needs, and leaves no thread behind that a fork would lose."""
    pipeline.import_dali()
    for heavy in HEAVY:
        importlib.import_module(heavy)
    torch.set_num_threads(1)
    loop.prepare_for = lambda network, device: network  # type: ignore[attr-defined]
    for layout in (model, efficientnet):
        layout.channels_last = lambda log_mel: log_mel  # type: ignore[attr-defined]
    # so that each rank has clips of a small set
    features.WHOLE_CLIP_BATCH, features.BLOCK_CLIPS, reading.BLOCK_FILES = 4, 8, 8
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    gc.freeze()  # what is there stays shared with the processes


def main() -> None:
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        try:
            with tempfile.TemporaryDirectory() as name:
                answer: object = [run(job, Path(name)) for job in request["jobs"]]
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
