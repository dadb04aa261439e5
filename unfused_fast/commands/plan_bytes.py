"""How many bytes a set, its log-mels, the memory bank and checkpoints take, from numbers alone: nothing is made.

N clips, D size of a projection, K clusters, F mel bins, T frames of a crop. Of what is written with a fixed layout the
figures are exact (tests/commands/test_plan_bytes.py compares them with files); what is not exact says so.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unfused_fast.clustering import DTYPES, Manifest, Norms
from unfused_fast.config import Config
from unfused_fast.data import TENSOR as RUNNING_NORM
from unfused_fast.models import PretrainNetwork
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, WAV_HEADER_BYTES
from unfused_fast.shards.packing.layout import SHARD_BYTES, SHARD_CLIPS, SHARDS_PER_SPLIT
from unfused_fast.shards.sets.shard_files import INDEX_VERSION, KEY_DIGITS

FLAC_SHARE = 0.56
"""Bytes of FLAC for one of 16-bit samples. Ours: of every seventh of the embedded recordings; noise takes more, silence
less.
"""
JSON_BYTES = 256
"""Of a clip's .json member: three digits in the index, one block in the tar. Ours: a path of up to 300 letters."""
SOURCE_BYTES = 24
"""Of the name of a clip's file in the clips table. Ours: AudioSet's are 16 to 24 letters."""
KMEANS_SHARE = 0.08
"""Most memory that spherical k-means takes beside the bank, as a share of it. Source: test_kmeans_memory.py."""
_MOMENTUM = ("momentum_buffer",)
OPTIMIZER_STATE = {"larc": _MOMENTUM, "lars": _MOMENTUM, "sgd": _MOMENTUM, "adamw": ("exp_avg", "exp_avg_sq")}
"""State of an optimiser that has the shape of its parameter."""
RNG_BYTES = 5056
"""State of PyTorch's generator on the CPU."""
RNG_CUDA_BYTES = 16
"""State of its generator on a GPU."""
_SAFETENSORS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}


class StepCost(NamedTuple):
    """What one clip costs in a pre-training step."""

    flops: int
    """Of a forward pass without gradient, one with, and its backward pass."""
    kept_bytes: int
    """What the forward pass keeps for the backward pass, in float32."""


def clip_samples(seconds: float) -> int:
    """Samples of a clip in a shard."""
    return round(seconds * SAMPLE_RATE_HZ)


def shard_sizes(clips: int, seconds: float, flac_share: float | None = None) -> tuple[int, int]:
    """Bytes of all tars and indexes of one split, and how many tars; FLAC where a share of the samples' bytes is given.

    Exact for WAV. Source: shards/packing/layout.py (where a set is cut) and shards/sets/shard_files.py (the files).
    """
    block, samples = tarfile.BLOCKSIZE, clip_samples(seconds)
    wav = WAV_HEADER_BYTES + 2 * samples
    audio = wav if flac_share is None else round(2 * samples * flac_share)
    planned = 5 * block + _padded(wav)
    limit = max(SHARD_CLIPS, -(-clips // SHARDS_PER_SPLIT))
    per_shard = min(limit, max(1, SHARD_BYTES // planned))
    members = [("index", KEY_DIGITS), ("json", JSON_BYTES), ("wav" if flac_share is None else "flac", audio)]
    members.sort()
    full, rest = divmod(clips, per_shard)
    total = full * _shard_bytes(per_shard, members) + (_shard_bytes(rest, members) if rest else 0)
    return total, full + bool(rest)


def _shard_bytes(clips: int, members: Sequence[tuple[str, int]]) -> int:
    """A tar and its index, of so many clips with these members in order of extension."""
    block, offset = tarfile.BLOCKSIZE, 0
    text = len(f"{INDEX_VERSION} {clips}\n")
    for _ in range(clips):
        for extension, size in members:
            name = KEY_DIGITS + 1 + len(extension)
            text += len(extension) + len(str(offset + block)) + len(str(size)) + name + 4  # three spaces, and one after
            offset += block + _padded(size)
    return -(-(offset + 2 * block) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE + text


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def clips_table_bytes(clips: int) -> int:
    """Of the clips table in memory: numbers of 8 and 4 bytes, two digests, names, and offsets of text; about."""
    numbers, digests, offsets = 4 * 8 + 5 * 4, 2 * 64, 7 * 4
    return clips * (numbers + digests + offsets + KEY_DIGITS + len("train") + SOURCE_BYTES)


def log_mel_bytes(clips: int, seconds: float, config: Config) -> int:
    """Of the log-mels of clips of one length, as float16 in memory. Source: log_mel_cache.layout."""
    longest = max(clip_samples(seconds), round(config.data.crop_seconds * SAMPLE_RATE_HZ))
    return clips * (1 + longest // config.frontend.hop_samples) * config.frontend.n_mels * 2


def log_mel_cache_bytes(clips: int, seconds: float, config: Config) -> int:
    """The same on disk: with the index, and a header of 128 bytes in both files."""
    return log_mel_bytes(clips, seconds, config) + 16 * clips + 2 * 128


def bank_manifest(clips: int, config: Config) -> Manifest:
    """What a generation of a run's memory bank holds."""
    dtype: Literal["float32", "bfloat16"] = "float32" if config.bank.dtype == "fp32" else "bfloat16"
    return Manifest(0, 0, 0, clips, config.model.proj_dim, dtype, Norms(None, None, None, 0))


def bank_rows_bytes(clips: int, config: Config) -> int:
    """Of the rows of the memory bank, (N, D)."""
    return clips * bank_manifest(clips, config).row_bytes


def bank_memory_bytes(clips: int, config: Config) -> int:
    """On the device: rows, how often each was written, and of each head this and the last assignments."""
    return bank_rows_bytes(clips, config) + clips * (4 + 2 * 8 * len(config.cluster.heads))


def bank_generation_bytes(clips: int, config: Config) -> int:
    """Of the files of rows of one generation on disk; its headers, a few kilobytes, are left out."""
    return sum(size for _, size in bank_manifest(clips, config).files())


def kmeans_bytes(clips: int, k: int, config: Config) -> int:
    """What clustering into K takes beside the bank: about, and at most for `spherical`."""
    dim, settings = config.model.proj_dim, config.cluster
    rows = clips * dim * DTYPES["float32"].itemsize
    if settings.algo == "spherical":
        copied = 0 if config.model.l2_normalize else rows
        return copied + math.ceil(KMEANS_SHARE * rows) + k * dim * (4 + 8 + 4)
    components = min(dim, 128 if settings.pca_dim == "auto" else settings.pca_dim)
    graph = clips * settings.pic_neighbours * 16 if settings.algo == "pic" else 0
    return 4 * clips * components + graph + dim * dim * 8 + k * components * 16


def message_bytes(config: Config) -> int:
    """What a rank takes to add up gradients with others: a copy of all of them, and in bfloat16 another."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in PretrainNetwork(config).parameters())
    return parameters * (4 if config.train.gradients == "fp32" else 4 + 2)


def checkpoint_bytes(clips: int, heads: Sequence[int], config: Config, cuda: bool = False) -> int:
    """Of one epoch-N.safetensors of pre-training with K of each head: exact. Its JSON is a few hundred bytes."""
    with torch.device("meta"):
        network = PretrainNetwork(config)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"model.{name}": (tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()
    }
    for name, parameter in network.named_parameters():
        for key in OPTIMIZER_STATE[config.optim.name]:
            tensors[f"optim.{name}.{key}"] = (parameter.dtype, tuple(parameter.shape))
        if config.optim.name == "adamw":
            tensors[f"optim.{name}.step"] = (torch.float32, ())
    tensors["rng.cpu"] = (torch.uint8, (RNG_BYTES,))
    if cuda:
        tensors["rng.cuda"] = (torch.uint8, (RNG_CUDA_BYTES,))
    if config.aug.mixup.ratio > 0:
        held = min(config.aug.mixup.memory, clips)
        tensors["mixup.crops"] = (torch.float16, (held, 1, config.frontend.n_mels, config.crop_frames))
        tensors["mixup.clip_ids"], tensors["mixup.written"] = (torch.int64, (held,)), (torch.int64, ())
    if config.data.norm == "running":
        tensors[RUNNING_NORM] = (torch.float64, (3,))
    width = config.model.proj_dim
    for number, clusters in enumerate(heads, 1):
        head = "" if number == 1 else f"head{number}."
        if config.model.prediction == "prototypes":
            tensors[f"{head}prototypes"] = (torch.float32, (clusters, width))
        else:
            tensors[f"{head}head.weight"] = (torch.float32, (clusters, width))
            tensors[f"{head}head.bias"] = (torch.float32, (clusters,))
        if head:
            tensors[f"{head}assignments"] = (torch.int64, (clips,))
    return _safetensors_bytes(tensors)


def _safetensors_bytes(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """Of a file: length of the header, header padded to 8 bytes, data. Source: safetensors' README (format)."""
    header, offset = dict[str, Any](), 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        end = offset + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset


def network_bytes(config: Config) -> int:
    """Of network, gradients and optimiser state on the device, in float32."""
    with torch.device("meta"):
        network = PretrainNetwork(config)
    trained = sum(parameter.numel() for parameter in network.parameters())
    held = sum(tensor.nbytes for tensor in network.state_dict().values())
    return int(held) + 4 * trained * (1 + len(OPTIMIZER_STATE[config.optim.name]))


def step_cost(config: Config, heads: Sequence[int]) -> StepCost:
    """What a clip costs in a step, counted on tensors without content; scores of each head's K prototypes included."""
    with torch.device("meta"):
        network = PretrainNetwork(config).train()
    first, kept_first = _counted(network, config, sum(heads), 2)
    second, kept_second = _counted(network, config, sum(heads), 4)
    return StepCost((second - first) // 2, (kept_second - kept_first) // 2)


def _counted(network: nn.Module, config: Config, k: int, batch: int) -> tuple[int, int]:
    """Operations of a step of a batch, and bytes of distinct tensors kept for its backward pass."""
    crops = torch.empty(batch, 1, config.frontend.n_mels, config.crop_frames, device="meta")
    prototypes = torch.empty(config.model.proj_dim, max(k, 1), device="meta")
    kept: dict[int, Tensor] = {}
    backward: Callable[[Tensor], Any] = torch.autograd.backward

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            network(crops)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = network(crops) @ prototypes
        backward(scores.sum())
    return int(counter.get_total_flops()), sum(tensor.nbytes for tensor in kept.values())
