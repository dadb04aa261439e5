"""Stage 2: every term of paper Eq. 1 on hand-worked numbers; pseudo-labels that are given."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightly_losses import lightly_loss
from method_kinds import sets
from outcomes import Cli
from safetensors.torch import load_file
from same_runs import assert_same_run
from stopping import signalled_after
from torch import Tensor

from unfused_fast.commands.options import pairs
from unfused_fast.config.fields import Config, DistillConfig
from unfused_fast.config.presets import flatten, preset, with_values
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages import distillation
from unfused_fast.stages.distillation import Distillation, distill, distill_loss, kl_term, mse_term
from unfused_fast.stages.features import load_encoder
from unfused_fast.training.options import Options, Paused

OPTIONS = Options(torch.device("cpu"))
PLAIN = "pseudo.k=4 pseudo.pca_dim=4 pseudo.n_init=1 optim.schedule=constant optim.warmup_epochs=0"


def test_kl_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])  # p = (3/4, 1/4), q = (1/2, 1/2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_term(student, teacher).item() == pytest.approx(expected, abs=1e-6)
    assert kl_term(student, 2 * teacher, temperature=2.0).item() == pytest.approx(4 * expected, abs=1e-6)
    other = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # so the direction is KL(teacher || student)
    assert kl_term(teacher, student).item() == pytest.approx(other, abs=1e-6)
    assert kl_term(student.repeat(5, 1), teacher.repeat(5, 1)).item() == pytest.approx(expected, abs=1e-6), "a mean"


def test_mse_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 4.0], [0.0, 5.0]])
    # cosines 0 and 1: (2 - 2 * 0 + 2 - 2 * 1) / 2 = 1
    assert mse_term(student, teacher).item() == pytest.approx(1.0)
    assert mse_term(student, teacher, "logits").item() == pytest.approx((9 + 16 + 0 + 9) / 4)


def test_equation_1_by_hand() -> None:
    log3 = math.log(3)
    deepest = torch.tensor([[log3, 0.0]])  # (3/4, 1/4)
    blocks = [torch.tensor([[0.0, 0.0]]), torch.tensor([[log3, 0.0]]), torch.tensor([[0.0, log3]])]
    parts = distill_loss(deepest, blocks, torch.tensor([0]), DistillConfig(alpha=0.7, beta=0.003))
    ce, ce_blocks = -math.log(0.75), -math.log(0.5) - math.log(0.75) - math.log(0.25)
    kl_blocks = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) + 0 + (0.75 * math.log(3) + 0.25 * math.log(1 / 3))
    mse_blocks = 1 + 0 + 2  # a zero vector has no direction: |0 - unit|^2 = 1; equal: 0; orthogonal: 2
    assert parts["ce"].item() == pytest.approx(ce, abs=1e-6)
    assert parts["ce_blocks"].item() == pytest.approx(ce_blocks, abs=1e-6)
    assert parts["kl_blocks"].item() == pytest.approx(kl_blocks, abs=1e-6)
    assert parts["mse_blocks"].item() == pytest.approx(mse_blocks, abs=1e-6)
    assert parts["total"].item() == pytest.approx(ce + 0.7 * ce_blocks + 0.3 * kl_blocks + 0.003 * mse_blocks, abs=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_teacher_stops_the_gradient_of_kl_and_mse(detach: bool) -> None:
    deepest = torch.randn(4, 3, requires_grad=True)
    config = DistillConfig(detach_teacher=detach)
    parts = distill_loss(deepest, [torch.randn(4, 3)], torch.tensor([0, 1, 2, 0]), config)
    assert (parts["kl_blocks"].requires_grad, parts["mse_blocks"].requires_grad) == (not detach, not detach)


def test_the_contrast_is_beside_the_mean_of_equation_1_over_views(tiny: list[str]) -> None:
    values = {**pairs([word for word in tiny if "=" in word]), "distill.contrast": 2.0, "loss.temperature": 0.2}
    config = with_values(preset("paper", "distill"), values)
    torch.manual_seed(0)
    student = Distillation(config, 5, torch.tensor([0, 1, 2, 0, 1, 2]), 3).eval()
    first, second, ids = torch.randn(6, 1, 64, 96), torch.randn(6, 1, 64, 96), torch.arange(5, 11)
    outputs = [student.network(view) for view in (first, second)]
    eq1 = [distill_loss(of.deepest, of.blocks, student.targets, config.distill)["total"] for of in outputs]
    contrast = lightly_loss("ntx_ent_loss", "NTXentLoss")(temperature=0.2)(*(of.projection for of in outputs))
    torch.testing.assert_close(student.loss((first, second), ids), (eq1[0] + eq1[1]) / 2 + 2 * contrast)
    plain = Distillation(with_values(config, {"distill.contrast": 0.0}), 5, student.targets, 3)
    assert (student.views, plain.views) == (2, 1) and plain.network.projector is None


@pytest.fixture
def config(tiny: list[str]) -> Config:
    values = pairs([word for word in tiny if "=" in word])
    return with_values(preset("recommended", "distill"), {**values, "train.epochs": 2})


def labels_of(run: Path) -> Tensor:
    return torch.from_numpy(pq.read_table(run / "pseudo_labels.parquet").column("pseudo_label").to_numpy().copy())


def test_the_teachers_own_give_the_same_student(config: Config, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    distill(config, shards, pretrained, tmp_path / "clustered", OPTIONS)
    own = labels_of(tmp_path / "clustered")
    distill(config, shards, pretrained, tmp_path / "given", OPTIONS, own)
    assert_same_run(tmp_path / "clustered", tmp_path / "given")
    other = own.flip(0)
    distill(config, shards, pretrained, tmp_path / "other", OPTIONS, other)
    assert torch.equal(labels_of(tmp_path / "other"), other)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "given", tmp_path / "other")
    resume = dataclasses.replace(OPTIONS, resume=True)
    with pytest.raises(UserError, match="pseudo_labels"):
        distill(config, shards, pretrained, tmp_path / "given", resume, other)


def test_what_does_not_fit_is_refused(config: Config, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    clips = shards.manifest.splits["train"].clips
    for given in (torch.zeros(clips - 1, dtype=torch.int64), torch.full((clips,), -1)):
        with pytest.raises(UserError, match="want one per clip, none negative, and no refreshing"):
            distill(config, shards, pretrained, tmp_path / "run", OPTIONS, given)
    refreshed = with_values(config, {"pseudo.refresh_epochs": 1})
    with pytest.raises(UserError, match=r"refresh_epochs = 1; want one per clip"):
        distill(refreshed, shards, pretrained, tmp_path / "run", OPTIONS, torch.zeros(clips, dtype=torch.int64))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train.accumulate": 17}, "train.accumulate = 17"),
        ({"distill.init": "teacher", "model.dim": 16}, "does not match f_sd"),
    ],
)
def test_settings_are_checked_before_the_teacher_reads_the_clips(
    config: Config, tones: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any,
    sentence: str,
) -> None:  # fmt: skip
    def clustered(*given: object) -> None:
        pytest.fail("the clips were clustered")

    monkeypatch.setattr(distillation, "pseudo_labels", clustered)
    with pytest.raises(UserError, match=sentence):
        distill(with_values(config, values), open_shards(tones), pretrained, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_student_has_the_sizes_of_its_teacher_when_it_is_gone_too(
    config: Config, tones: Path, pretrained: Path, copy_of: Callable[[Path], Path]
) -> None:
    """Where its own are those by default: the run resumes, and is there, without the teacher."""
    teacher, shards, default = copy_of(pretrained), open_shards(tones), flatten(Config())
    sizes = {name: default[name] for name in ("model.dim", "model.channels")}
    wanted, run = with_values(config, sizes), teacher.with_name("student")
    with pytest.raises(Paused):
        distill(wanted, shards, teacher, run, dataclasses.replace(OPTIONS, until_epoch=1))
    made = json.loads((run / "config.json").read_text())["config"]
    theirs = json.loads((teacher / "config.json").read_text())["config"]
    assert {name: made[name] for name in sizes} == {name: theirs[name] for name in sizes} != sizes
    shutil.rmtree(teacher)
    resumed = dataclasses.replace(OPTIONS, resume=True)
    first = distill(wanted, shards, teacher, run, resumed)
    assert first == distill(wanted, shards, teacher, run, resumed)
    with pytest.raises(UserError, match="not a run of unfused-fast"):
        distill(wanted, shards, teacher, run.with_name("other"), OPTIONS)


def test_the_encoder_ends_as_a_mean_of_the_teachers_and_what_was_learned(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    teacher, found = load_encoder(pretrained, OPTIONS.device).network, {}
    assert teacher is not None

    def distilled(share: float, epochs: int, *more: object) -> Any:
        values = f"{PLAIN} distill.init=teacher distill.teacher_share={share}"
        run = ["--teacher", pretrained, "--out", tmp_path / f"{share}", "--epochs", epochs, *tiny, *sets(values)]
        done = cli("train", "distill", tones, *run, *more)
        if done.code == 0:
            found[share, epochs] = load_file(tmp_path / f"{share}" / f"checkpoints/epoch-{epochs:06d}.safetensors")
        return done

    for share in (0.0, 0.25, 1.0):
        assert distilled(share, 2).code == 0
    # of a run of two epochs, as if it had had three: the mean is made once, after the last
    again = distilled(0.25, 3, "--resume-anyway")
    said = "epoch 2: the teacher's weights have a share of 0.25 in its encoder, and would have 0 in this run"
    assert again.code == 0 and f"{said}; resuming from epoch 1" in again.err, again.err
    assert distilled(0.0, 3, "--resume-anyway").code == 0
    for name, given in ((f"model.encoder.{name}", given) for name, given in teacher.state_dict().items()):
        if given.is_floating_point():
            for epochs in (2, 3):
                wanted = 0.75 * found[0.0, epochs][name] + 0.25 * given
                torch.testing.assert_close(found[0.25, epochs][name], wanted, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[1.0, 2][name], given)
    weight = "model.encoder.convolutions.0.0.weight"
    assert not torch.allclose(found[0.0, 2][weight], found[1.0, 2][weight], atol=1e-4)
    # fewer epochs than are done: no checkpoint is left that is not past the last
    with signalled_after(8):
        assert distilled(0.5, 5).code == 130
    fewer = distilled(0.5, 1, "--resume-anyway")
    assert fewer.code == 1 and "have a share of 0 in its encoder, and would have 0.5 in this run" in fewer.error


def test_local_views_of_pretraining_are_not_of_stage_2(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    for name, more in (("plain", []), ("local", sets("views.local=1"))):
        out = ["--teacher", pretrained, "--out", tmp_path / name, "--epochs", 1, *tiny]
        done = cli("train", "distill", tones, *out, *more)
        assert done.code == 0 and ("views.local = 1 is for pre-training" in done.err) == bool(more), done.err
    logs = [json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("plain", "local")]
    assert logs[0]["loss"] == logs[1]["loss"]


def test_the_three_stages_give_stage_2_the_sizes_of_stage_1(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "narrow.yaml"
    file.write_text("stage: pretrain\nmodel: {dim: 24}\n")
    narrow = [*tiny[:2], *sets(" ".join(value for value in tiny[3::2] if not value.startswith("model.dim=")))]
    done = cli("train", "all", tones, "--out", tmp_path / "all", "--epochs", 1, *narrow, "--config", file)
    assert done.code == 0 and "f_sd has the sizes of its teacher: model.dim = 24" in done.err, done.err
