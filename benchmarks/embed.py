"""Files a second of `embed` (decode, log-mel, encoder, writing), and of the encoder alone on loaded log-mels, in turn
within each repeat, so that a ratio compares neighbours in time. The encoder is the paper's, with random weights.

Imports stand inside the functions, because worker processes load this file again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from unfused_fast.embedding.embedder import Embedder


def main() -> None:
    import torch
    from measure import record, seconds_of

    from unfused_fast.config.fields import Config
    from unfused_fast.embedding.embedder import Embedder
    from unfused_fast.embedding.files import embed_files
    from unfused_fast.embedding.sources import embed_rows
    from unfused_fast.models.audiontt import build_encoder
    from unfused_fast.shards.packing.workers import available_cores
    from unfused_fast.stages.features import FrozenEncoder
    from unfused_fast.training.options import prepare_for

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=16000, help="of the files, in hertz")
    parser.add_argument("--ending", default="wav", choices=["wav", "flac", "mp3", "ogg"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    settings: dict[str, object] = {"files": given.files, "seconds": given.seconds, "rate": given.rate}
    settings |= {"ending": given.ending, "workers": given.workers, "threads": torch.get_num_threads()}
    settings |= {"load": round(os.getloadavg()[0], 1)}  # more than the cores: others compute too
    config = Config()
    network = prepare_for(build_encoder(config), device).eval()
    embedder = Embedder(FrozenEncoder("random", config, {"mean": -5.0, "std": 3.0}, network, None))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        write_noise(folder, given.files, given.seconds, given.rate, given.ending)
        rows = embed_rows([str(folder)], print)
        batches = loaded(embedder, folder)

        def whole() -> float:
            start = time.perf_counter()
            embed_files(embedder, rows, Path(name) / "out.npz", workers=given.workers, overwrite=True)
            return float(given.files / (time.perf_counter() - start))

        def bare() -> float:
            return float(given.files / seconds_of(lambda: encode(embedder, batches), device))

        for run in (whole, bare):
            run()  # page cache, first calls
        pairs = [(whole(), bare()) for _ in range(given.repeats)]
    record("embed", "embed: decode, log-mel, encoder, npz", "files/s", [one for one, _ in pairs], device, **settings)
    record("embed", "the encoder on loaded log-mels", "files/s", [other for _, other in pairs], device, **settings)
    ratios = [one / other for one, other in pairs]
    record("embed", "embed / encoder, same repeat", "ratio", ratios, device, **settings)


def write_noise(folder: Path, files: int, seconds: float, rate: int, ending: str) -> None:
    """Files of white noise."""
    import numpy as np
    import soundfile

    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(files):
        soundfile.write(folder / f"{number:06d}.{ending}", 0.1 * generator.standard_normal(int(seconds * rate)), rate)


def loaded(embedder: Embedder, folder: Path) -> list[torch.Tensor]:
    """Normalised log-mels (B, 1, F, T) of the files on the device, in the batches that embed makes."""
    import soundfile
    import torch

    from unfused_fast.data.front_end import log_mel
    from unfused_fast.embedding.pieces import in_batches

    samples = round(soundfile.info(next(folder.iterdir())).duration * embedder.sample_rate)
    count = len(list(folder.iterdir()))
    pieces = [piece for _ in range(count) for piece in embedder.cutting.pieces(samples)]
    wave = 0.1 * torch.randn(samples, device=embedder.device)
    one = (log_mel(wave)[None, None] - embedder.mean) / embedder.std
    return [one.expand(len(batch), -1, -1, -1).contiguous() for batch in in_batches(pieces)]


def encode(embedder: Embedder, batches: list[torch.Tensor]) -> None:
    """The encoder and the maxima and means over time, read back once a batch."""
    for batch in batches:  # the embedder's weights take no gradient
        frames = embedder.encoder(batch).frames
        (frames.amax(dim=1) + frames.mean(dim=1)).cpu()


if __name__ == "__main__":
    main()
