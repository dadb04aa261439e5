"""Runs the command line on several ranks, all processes forked from one that has imported everything.

python tests/support/ranks.py     reads lines, each a list of {"ranks": N, "arguments": [...]}, and answers each with a
                                  line, a list of lists of {"code", "said"}, one for each rank

With "stop_after": M the last rank sends itself SIGTERM after M steps; with "slow_saves": FOLDER a checkpoint takes
three seconds, and each rank says at its end which ones the folder holds; with "flat": true the network is one whose
clusters have collapsed; with "check": "layers" ranks run check_layers, with "bank" check_bank in "folder", with
"features" save_features there, of "shards" by "encoder", with "embed" embed_folder. With "in": [FOLDER, ...] each rank
runs in a folder of its own, as on machines that share none; with "killed": true the last rank is killed in the first
pass over the clips; with "full": "pass" the disk is full for the last rank in that pass, with "full": "saves" for the
first rank when it saves; with "little": true the last rank has 1000 bytes of memory.

Networks are not laid out channels last here: torch's BatchNorm of such a batch on a CPU adds up to 6e-5 of error, where
that of several ranks adds 4e-7; and without oneDNN and NNPACK a convolution of a part of a batch is that part of the
whole, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank_on_ranks import check_bank
from collapsing import FlatProjector
from stopping import signalled_after
from torch import nn

from unfused_fast.cli import app
from unfused_fast.commands.exits import run_app
from unfused_fast.data import dali as pipeline
from unfused_fast.data import first_pass, store
from unfused_fast.data.stream import Loader
from unfused_fast.distributed.ranks import FailedOnFirst, Ranks
from unfused_fast.distributed.shared_layers import gather_rows, share_layers, sum_gradients
from unfused_fast.embedding import embed_files, embed_rows, load, reading
from unfused_fast.errors import UserError
from unfused_fast.launch import place_of
from unfused_fast.memory import Free
from unfused_fast.models import audiontt as model
from unfused_fast.models import efficientnet
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages import features
from unfused_fast.training import Interrupted, checkpoint, loop, saves

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("train", {}),
    "left out": ("train", {"left_out": [2, 11, 12, 59]}),
    "resident": ("train", {"store": "resident", "read_again": True}),
    "few": ("test", {}),
}
"""What save_features saves."""
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
        with said.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if job.get("check"):
            check(job, own)
            os._exit(0)
        if "stop_after" in job and own["RANK"] == str(job["ranks"] - 1):
            stop_after(job["stop_after"])
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
        sys.argv[1:] = job["arguments"]
        run_app(app)
    except SystemExit as ended:
        if "slow_saves" in job:
            print("at the end:", *sorted(path.name for path in Path(job["slow_saves"]).glob("*.json")), flush=True)
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


def stop_after(steps: int) -> None:
    """Lets this process send itself SIGTERM once so many steps are done."""
    TO_THE_END.enter_context(signalled_after(steps))


def check(job: dict[str, Any], own: dict[str, str]) -> None:
    """The checks of a job, on its ranks."""
    refused = (UserError,) if job["check"] == "error" else ()
    with contextlib.suppress(*refused), Ranks(place_of(own), torch.device("cpu"), 30.0) as ranks:
        if job["check"] == "error":
            ranks.first(refuse)
        elif job["check"] == "bank":
            check_bank(ranks, Path(job["folder"]))
        elif job["check"] == "embed":
            embed_folder(ranks, job)
        elif job["check"] == "features":
            save_features(ranks, Path(job["folder"]), Path(job["shards"]), Path(job["encoder"]))
        else:
            check_layers(ranks)
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), "such threads may abort a process that ends"


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


def check_layers(ranks: Ranks) -> None:
    """Layers on shares of a batch, of different sizes and empty ones, against torch's on the whole, in float64."""
    for clips in (7, 2, 64):
        for shape in ((5,), (3, 4, 6)):
            _check_batch(ranks, clips, shape)
    assert ranks.texts(f"rank {ranks.rank}") == ["rank 0", "rank 1", "rank 2"]
    assert ranks.any_rank(ranks.rank == 1, False) == (True, False)
    assert ranks.first(lambda: {"of": ranks.rank}) == {"of": 0}
    try:
        ranks.first(lambda: 1 / 0)
    except (ZeroDivisionError, FailedOnFirst) as error:
        assert isinstance(error, FailedOnFirst) == (ranks.rank > 0) and "division by zero" in str(error)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, dtype=torch.int64)}
    found = ranks.tensors_from_first(tensors if ranks.leads else None)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors) and len(found) == 2
    ranks.barrier()


def _check_batch(ranks: Ranks, clips: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(clips)
    whole = torch.randn(clips, *shape, dtype=torch.float64) * 3 + 1
    weighting = torch.randn(clips, *shape, dtype=torch.float64)
    ranks.batch(ranks.share.sizes(clips))
    rows = ranks.share.of(clips)
    plain = nn.BatchNorm1d(shape[0]) if len(shape) == 1 else nn.BatchNorm2d(shape[0])
    nn.init.uniform_(plain.weight), nn.init.uniform_(plain.bias)
    shared = share_layers(nn.Sequential(copy.deepcopy(plain)), ranks, sync_bn=True)
    exact = copy.deepcopy(plain).double()
    x = whole.clone().requires_grad_()
    (exact(x) * weighting).sum().backward()
    own = whole[rows].float().requires_grad_()
    normal = shared(own)
    loss = (normal * weighting[rows].float()).sum()
    loss.backward()
    total = sum_gradients(shared.parameters(), loss.detach(), ranks, "fp32")
    close = torch.testing.assert_close
    close(normal.detach().double(), exact(whole)[rows].detach(), rtol=0, atol=2e-5)
    close(own.grad.double(), x.grad[rows], rtol=0, atol=2e-4)  # type: ignore[union-attr, index]
    close(total.double(), (copy.deepcopy(plain).double()(whole) * weighting).sum().detach(), rtol=1e-4, atol=1e-3)
    for name in ("weight", "bias"):
        close(getattr(shared[0], name).grad.double(), getattr(exact, name).grad, rtol=1e-4, atol=1e-4)
    running = copy.deepcopy(plain).double()
    running(whole)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        close(getattr(shared[0], name).double(), getattr(running, name).double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(ranks.gather_parts(whole[rows].float(), ranks.sizes), whole.float())
    _check_gather(ranks, whole)
    dropout = share_layers(nn.Sequential(nn.Dropout(0.4)), ranks, sync_bn=True)
    torch.manual_seed(3)
    dropped = dropout(whole[rows].float())
    torch.manual_seed(3)
    assert torch.equal(dropped, nn.functional.dropout(whole.float(), 0.4)[rows])


def _check_gather(ranks: Ranks, whole: torch.Tensor) -> None:
    """Each rank's loss is about all rows, from its own rows: the gradient of their sum is that of one process."""
    x, rows = whole.flatten(1).clone().requires_grad_(), ranks.share.of(len(whole))
    (x @ x.T).square().mean().backward()
    own = x[rows].detach().clone().requires_grad_()
    every = gather_rows(own, ranks)
    assert torch.equal(every, x)
    ((own @ every.T).square().sum() / len(whole) ** 2).backward()
    torch.testing.assert_close(own.grad, x.grad[rows])  # type: ignore[index]


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
    named = "matplotlib.pyplot torch.utils.tensorboard zarr torch._dynamo torch.distributed faiss pandas pydantic"
    for heavy in named.split():
        importlib.import_module(heavy)
    torch.set_num_threads(1)
    loop.prepare_for = lambda network, device: network  # type: ignore[attr-defined]
    for layout in (model, efficientnet):
        layout.channels_last = lambda log_mel: log_mel  # type: ignore[attr-defined]
    # so that each rank has clips of a small set
    features.WHOLE_CLIP_BATCH, features.BLOCK_CLIPS, reading.BLOCK_FILES = 4, 8, 8
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)


def main() -> None:
    prepare()
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps([run(job, Path(name)) for job in json.loads(line)]), flush=True)


if __name__ == "__main__":
    main()
