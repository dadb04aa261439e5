"""The HEAR 2021 API: what hear-validator 2021.0.2 asks of a torch model, and what its text asks beside that."""

from pathlib import Path

import pytest
import torch

from unfused_fast import hear
from unfused_fast.errors import UserError


@pytest.fixture(scope="module")
def model(pretrained: Path) -> torch.nn.Module:
    return hear.load_model(str(pretrained))


def white_noise(sounds: int, seconds: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((sounds, int(seconds * 16000)), generator=generator) * 2 - 1


def test_what_the_validator_asks(model: torch.nn.Module) -> None:
    assert isinstance(model, torch.nn.Module) and isinstance(model, hear.Embedder)
    assert model.sample_rate in (16000, 22050, 44100, 48000)
    assert type(model.scene_embedding_size) is int and type(model.timestamp_embedding_size) is int
    assert next(model.to("cpu").parameters()).device.type == "cpu"
    embeddings, timestamps = hear.get_timestamp_embeddings(white_noise(16, 2.0), model)
    assert embeddings.dtype == torch.float32 and timestamps.dtype == torch.float32
    assert embeddings.shape == (16, timestamps.shape[1], model.timestamp_embedding_size)
    spacing = timestamps.diff()
    assert (spacing > 0).all() and (spacing - spacing.mean()).abs().max() < 1e-3
    # centred: as far from the clip's start as the last is from its end, to a step
    assert timestamps[0, 0] >= 0 and abs(timestamps[0, 0] - (2000 - timestamps[0, -1])) <= spacing.mean()
    scenes = hear.get_scene_embeddings(white_noise(8, 3.74), model)
    assert scenes.dtype == torch.float32 and scenes.shape == (8, model.scene_embedding_size)


def test_what_is_not_a_model_or_no_batch(model: torch.nn.Module) -> None:
    assert isinstance(model, hear.Embedder)
    assert hear.load_model().digest == hear.load_model("base").digest
    with pytest.raises(UserError, match=r"n_sounds, n_samples"):
        hear.get_scene_embeddings(torch.zeros(16000), model)
    for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(UserError, match=r"\(132300, 2\), which looks like \(samples, channels\)"):
            embed(torch.zeros(132300, 2), model)
