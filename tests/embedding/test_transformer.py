"""UnfusedEmbedder is a scikit-learn transformer, and its features are the embedder's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import unfused_fast
from unfused_fast.embedding.sklearn import UnfusedEmbedder
from unfused_fast.errors import UserError
from unfused_fast.shards.sources.row import SourceRow


def test_clone_and_parameters(pretrained: Path) -> None:
    step = UnfusedEmbedder(pretrained, pool="mean", device="cpu")
    copied = clone(step.fit([]))
    assert copied.get_params() == step.get_params()
    assert set(step.get_params()) == {"encoder", "pool", "sample_rate", "device", "batch_size", "features"}
    assert not hasattr(copied, "embedder_")
    assert copied.set_params(pool="max").pool == "max" and step.pool == "mean"
    with pytest.raises(UserError, match="not fitted"):
        copied.transform([np.zeros(16000, np.float32)])


def test_files_and_arrays_give_the_embedders_features(pretrained: Path, tone_rows: list[SourceRow]) -> None:
    paths = [row.path for row in tone_rows[:5]]
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    expected = unfused_fast.load(pretrained, device="cpu").embed(waves, 16000).numpy()
    step = UnfusedEmbedder(pretrained, device="cpu", batch_size=2).fit(paths)
    np.testing.assert_allclose(
        step.transform([str(paths[0]), waves[1], paths[2], waves[3], paths[4]]), expected, atol=1e-5
    )
    assert step.transform([]).shape == (0, 32)
    assert len(step.get_feature_names_out()) == 32


def test_a_pipeline_learns_the_tones(pretrained: Path, tone_rows: list[SourceRow]) -> None:
    splits = {name: [row for row in tone_rows if row.split == name] for name in ("train", "test")}
    model = make_pipeline(UnfusedEmbedder(pretrained, device="cpu"), StandardScaler(), LogisticRegression(max_iter=500))
    model.fit([row.path for row in splits["train"]], [row.label for row in splits["train"]])
    score = model.score([row.path for row in splits["test"]], [row.label for row in splits["test"]])
    assert score > 0.6  # chance is a third


@pytest.mark.parametrize("size", [0, 1.5, "all"])
def test_no_such_batch_size(pretrained: Path, size: Any) -> None:
    with pytest.raises(UserError, match=f"batch_size = {size}: want a whole number"):
        UnfusedEmbedder(pretrained, device="cpu", batch_size=size).fit([]).transform([np.zeros(16000, np.float32)])


def test_a_file_that_is_no_audio(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no audio")
    with pytest.raises(UserError, match=r"notes\.wav: not audio"):
        UnfusedEmbedder(pretrained, device="cpu").fit([]).transform([tmp_path / "notes.wav"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((132300, 2)), r"\(samples, channels\)"),
        ([np.zeros(16000, np.int16)], "int16"),
        ("speech.wav", "speech.wav"),
    ],
)
def test_what_is_no_list_of_clips(pretrained: Path, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        UnfusedEmbedder(pretrained, device="cpu").fit([]).transform(given)
