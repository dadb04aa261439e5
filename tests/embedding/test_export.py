"""`export`: what other programs load gives the embeddings of unfused_fast.load, on recordings of several lengths."""

import json
import logging
from pathlib import Path

import pytest
import soundfile
import torch
from outcomes import Cli, refused
from safetensors import safe_open

import unfused_fast
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import flatten, with_values
from unfused_fast.data.front_end import log_mel
from unfused_fast.embedding.embedder import Embedder
from unfused_fast.embedding.export import WaveformEncoder, model_card
from unfused_fast.errors import UserError
from unfused_fast.models.audiontt import build_encoder
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import FrozenEncoder

LENGTHS = (1, 2, 159, 160, 161, 512, 513, 514, 1024, 8000, 15039, 15040, 15199, 15200, 15201, 15359, 15360, 16481)
"""Samples around every threshold: half a window (512), hops (160), steps (1280), the training crop (15200)."""


@pytest.fixture(scope="module")
def recordings(tone_rows: list[SourceRow]) -> list[torch.Tensor]:
    """Clips of 1.0, 2.3 and 4 seconds and odd numbers of samples."""
    waves = [torch.from_numpy(soundfile.read(row.path, dtype="float32")[0]) for row in tone_rows[:6]]
    return [waves[0][:16000], torch.cat(waves[:3])[:37001], torch.cat(waves)[:64123]]


def test_hub_folder_loads_and_gives_the_same(
    cli: Cli, pretrained: Path, tones: Path, tmp_path: Path, recordings: list[torch.Tensor]
) -> None:
    folder = tmp_path / "model"
    done = cli("export", pretrained, "--hub", folder, "--json")
    assert done.code == 0, done.err
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    run, hub = unfused_fast.load(pretrained, device="cpu"), unfused_fast.load(folder, device="cpu")
    torch.testing.assert_close(hub.embed(recordings, 16000), run.embed(recordings, 16000), rtol=0, atol=0)
    assert json.loads(done.out)[0]["digest"] == hub.digest == run.digest
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith(("projector", "optim"))]  # noqa: SIM118
    card = (folder / "README.md").read_text()
    result = json.loads((pretrained / "result.json").read_text())
    for fact in (open_shards(tones).manifest.digest, result["config_digest"], f"| loss | {result['loss']} |"):
        assert fact in card
    parameters = sum(parameter.numel() for parameter in run.encoder.parameters())
    assert f"| parameters | {parameters:,} |" in card and "| embedding size | 32 |" in card
    for path in (folder / "README.md", folder / "config.json"):
        assert str(pretrained) not in path.read_text()
    again = cli("export", pretrained, "--hub", folder)
    assert again.code == 1 and "--overwrite" in again.error
    with pytest.raises(UserError, match=r"in Python: overwrite=True"):
        hub.save_pretrained(folder)
    assert cli("export", pretrained, "--hub", folder, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_else_in_a_hub_folder_is_deleted(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    folder, linked = tmp_path / "model", tmp_path / "linked"
    assert cli("export", pretrained, "--hub", folder).code == 0
    for name in (".git", "model.replaced", "model.partial"):
        kept = (folder if name == ".git" else tmp_path) / name
        kept.mkdir()
        (kept / "HEAD").write_text("mine")
        refused(cli("export", pretrained, "--hub", folder, "--overwrite"), "HEAD" if kept.suffix else ".git", "move")
        assert (kept / "HEAD").read_text() == "mine"
        (kept / "HEAD").unlink()
        kept.rmdir()
    (own := tmp_path / "own").mkdir()
    (own / "README.md").write_text("mine")
    refused(cli("export", pretrained, "--hub", own, "--overwrite"), "own: it exists and is not a model folder")
    refused(cli("export", pretrained, "--hub", own / "README.md", "--overwrite"), "README.md: it is a file")
    assert (own / "README.md").read_text() == "mine"
    linked.symlink_to(folder)
    assert cli("export", pretrained, "--hub", linked, "--overwrite").code == 0
    assert linked.is_symlink() and unfused_fast.load(linked).digest == unfused_fast.load(folder).digest


def test_a_kill_while_a_hub_folder_is_replaced_leaves_it(
    cli: Cli, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each rename: by the disk's error, which puts it back, and by a kill, after which the next call does."""
    folder, rename = tmp_path / "model", Path.rename
    assert cli("export", pretrained, "--hub", folder).code == 0
    (folder / "README.md").write_text("the old one")

    def stop_at(ending: str, error: BaseException) -> None:
        def stopping(self: Path, target: Path) -> Path:
            if self.name == f"model{ending}":
                raise error
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", stopping)

    for ending in ("", ".partial"):
        stop_at(ending, OSError("no"))
        refused(cli("export", pretrained, "--hub", folder, "--overwrite"), "cannot be written")
        assert (folder / "README.md").read_text() == "the old one" and len(list(tmp_path.iterdir())) == 1
        stop_at(ending, SystemExit(137))
        assert cli("export", pretrained, "--hub", folder, "--overwrite").code == 137
        monkeypatch.setattr(Path, "rename", rename)
        assert cli("export", pretrained, "--hub", folder).code == 1
        assert (folder / "README.md").read_text() == "the old one"
    assert cli("export", pretrained, "--hub", folder, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and "old" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("given", ["log-mel", "waveform"])
@pytest.mark.parametrize("kind", ["--torch-export", "--onnx"])
def test_a_graph_gives_the_embeddings(
    cli: Cli,
    pretrained: Path,
    tmp_path: Path,
    recordings: list[torch.Tensor],
    kind: str,
    given: str,
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "graph"
    if kind == "--onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed (extra `export`)")
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")  # torch's loggers do not propagate
    monkeypatch.setattr(registry, "handlers", [caplog.handler])
    done = cli("export", pretrained, kind, out, "--input", given)
    assert done.code == 0, done.err
    assert "torchvision" not in caplog.text
    assert not [one for one in recwarn if "copyreg" in one.filename]
    assert list(tmp_path.iterdir()) == [out]
    if kind == "--onnx":
        import onnx
        import onnxruntime

        onnx.checker.check_model(onnx.load(out), full_check=True)
        session, name = (
            onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"]),
            given.replace("-", "_"),
        )

        def run(taken: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["embedding"], {name: taken.numpy()})[0])
    else:
        run = torch.export.load(out).module()
    embedder = unfused_fast.load(pretrained, device="cpu")
    short = [recordings[2][:samples] for samples in LENGTHS if given == "waveform"]
    for clip in (*short, *recordings):
        batch = torch.stack([clip, clip.flip(0), 0.3 * clip])
        for some in (batch, batch[:1]):
            taken = log_mel(some)[:, None] if given == "log-mel" else some
            torch.testing.assert_close(run(taken), embedder.embed(list(some), 16000), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [{"data.norm": "wave_l2", "model.pool": "mean"}, {"frontend.kind": "decar1", "frontend.pad_mode": "constant"}],
)
def test_waveforms_of_other_front_ends(values: dict[str, str]) -> None:
    config = with_values(Config(), {"model.channels": 4, "model.dim": 32, **values})
    embedder = Embedder(FrozenEncoder("random", config, {"mean": -3.0, "std": 2.0}, build_encoder(config), None))
    generator = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(2, samples, generator=generator) for samples in LENGTHS]
    expected = [embedder.embed(list(clip), 16000) for clip in clips]
    sizes = {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=1)}
    graph = torch.export.export(WaveformEncoder(embedder), (torch.zeros(2, 15360),), dynamic_shapes=(sizes,)).module()
    for clip, wanted in zip(clips, expected, strict=True):
        torch.testing.assert_close(graph(clip), wanted, rtol=1e-4, atol=1e-5)


def test_what_export_refuses(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    assert cli("export", pretrained).code == 2
    (tmp_path / "there.pt2").write_text("mine")
    refused(cli("export", pretrained, "--torch-export", tmp_path / "there.pt2"), "--overwrite")
    assert (tmp_path / "there.pt2").read_text() == "mine"
    given = ("export", pretrained, "--hub", tmp_path / "first")
    assert cli(*given, "--input", "waveform").code == 2
    refused(cli(*given, "--torch-export", tmp_path / "there.pt2"), "there.pt2: it exists")
    refused(cli(*given, "--torch-export", tmp_path / "x/../first"), "first: named for two exports")
    assert not (tmp_path / "first").exists(), "all places are looked at first"
    refused(cli("export", tmp_path, "--hub", tmp_path / "x"), "not a run of unfused-fast")
    assert cli("export", pretrained, "--hub", tmp_path / "model").code == 0
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(
        cli("export", tmp_path / "model", "--hub", tmp_path / "other"), "is not the file of config.json (its sha256"
    )
    record = tmp_path / "model" / "config.json"  # as earlier versions wrote it
    del (value := json.loads(record.read_text()))["weights_sha256"]
    record.write_text(json.dumps(value))
    refused(cli("export", tmp_path / "model", "--hub", tmp_path / "other"), "model.safetensors: cannot be read")


@pytest.mark.parametrize(
    ("stage", "method", "listed", "others"),
    [
        ("pretrain", "decar-v2", "| cluster.k |", "distill.alpha"),
        ("pretrain", "simclr", "by the method simclr;", "cluster."),
        ("distill", "decar-v2", "| distill.alpha |", "cluster.k"),
        ("finetune", "decar-v2", "| eval.label_fraction |", "UnFuSeD"),
        ("imported from byol-a", "decar-v2", "unknown", "train.epochs"),
    ],
)
def test_a_card_lists_the_settings_that_its_stage_reads(stage: str, method: str, listed: str, others: str) -> None:
    config = with_values(Config(), {"model.channels": 4, "model.dim": 32, "method.name": method})
    embedder = Embedder(FrozenEncoder("random", config, {"mean": -3.0, "std": 2.0}, build_encoder(config), None))
    recorded = {"stage": stage, "config": flatten(config), "shards": "", "log_mel": {"mean": -3.0, "std": 2.0}}
    card = model_card(embedder, recorded, {}, "title")
    assert listed in card and others not in card and f"| stage | {stage} |" in card
    assert ("exported from a run" in card) == (not stage.startswith("imported"))
