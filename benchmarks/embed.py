"""Files a second of `embed` (decode, log-mel, encoder, writing), and of the encoder alone on loaded log-mels, in turn
within each repeat, so that a ratio compares neighbours in time. The encoder is the paper's, with random weights.

Imports stand inside the functions, because worker processes load this file again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from unfused_fast.embedding import Embedder


def main() -> None:
    import torch
    from measure import arguments, pairs_of, record, seconds_of

    from unfused_fast.commands.measure.synthetic import noise_files
    from unfused_fast.config import Config
    from unfused_fast.embedding import Embedder, embed_files, embed_rows
    from unfused_fast.models import build_encoder
    from unfused_fast.shards.packing.workers import available_cores
    from unfused_fast.stages import FrozenEncoder
    from unfused_fast.training import prepare_for

    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=16000, help="of the files, in hertz")
    parser.add_argument("--ending", default="wav", choices=["wav", "flac", "mp3", "ogg"])
    parser.add_argument("--workers", type=int, default=available_cores())
    given = parser.parse_args()
    device, count = torch.device(given.device), given.files
    settings: dict[str, object] = {"files": count, "seconds": given.seconds, "rate": given.rate}
    settings |= {"ending": given.ending, "workers": given.workers, "threads": torch.get_num_threads()}
    settings |= {"load": round(os.getloadavg()[0], 1)}  # more than the cores: others compute too
    config = Config()
    network = prepare_for(build_encoder(config), device).eval()
    embedder = Embedder(FrozenEncoder("random", config, {"mean": -5.0, "std": 3.0}, network, None))
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "files", Path(name) / "out.npz"
        noise_files(folder, count, given.seconds, given.rate, ending=given.ending)
        rows = embed_rows([str(folder)], print)
        batches = loaded(embedder, count, given.seconds)
        whole, bare = pairs_of(
            lambda: (
                count
                / seconds_of(lambda: embed_files(embedder, rows, out, workers=given.workers, overwrite=True), device)
            ),
            lambda: count / seconds_of(lambda: encode(embedder, batches), device),
            given.repeats,
        )
    record("embed", "embed: decode, log-mel, encoder, npz", "files/s", whole, device, **settings)
    record("embed", "the encoder on loaded log-mels", "files/s", bare, device, **settings)
    ratios = [one / other for one, other in zip(whole, bare, strict=True)]
    record("embed", "embed / encoder, same repeat", "ratio", ratios, device, **settings)


def loaded(embedder: Embedder, count: int, seconds: float) -> list[torch.Tensor]:
    """Normalised log-mels (B, 1, F, T) of so many files on the device, in the batches that embed makes."""
    import torch

    from unfused_fast.data import log_mel
    from unfused_fast.embedding.pieces import in_batches

    samples = round(seconds * embedder.sample_rate)
    pieces = [piece for _ in range(count) for piece in embedder.cutting.pieces(samples)]
    one = (log_mel(0.1 * torch.randn(samples, device=embedder.device))[None, None] - embedder.mean) / embedder.std
    return [one.expand(len(batch), -1, -1, -1).contiguous() for batch in in_batches(pieces, embedder.batch_frames)]


def encode(embedder: Embedder, batches: list[torch.Tensor]) -> None:
    """The encoder and the maxima and means over time, read back once a batch."""
    for batch in batches:  # the embedder's weights take no gradient
        frames = embedder.encoder(batch).frames
        (frames.amax(dim=1) + frames.mean(dim=1)).cpu()


if __name__ == "__main__":
    main()
