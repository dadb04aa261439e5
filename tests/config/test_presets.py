"""Presets against the papers and the authors' code, written out by hand; what `config --diff` shows of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import PresetName, Stage, differences, flatten, preset
from unfused_fast.models.audiontt import build_encoder

AUGMENTATION_OF_BYOL_A = {
    "aug.mixup.ratio": 0.4,
    "aug.mixup.memory": 2048,
    "aug.rrc.enabled": True,
    "aug.rrc.canvas_time": 1.5,
    "aug.rrc.freq_scale": (0.6, 1.5),
    "aug.rrc.time_scale": (0.6, 1.5),
}
FRONT_END = {
    "frontend.n_fft": 1024,
    "frontend.hop_samples": 160,
    "frontend.n_mels": 64,
    "frontend.fmin_hz": 60.0,
    "frontend.fmax_hz": 7800.0,
    "frontend.pad_mode": "reflect",
}
AUGMENTATION_OF_THE_AUTHORS = {**AUGMENTATION_OF_BYOL_A, "aug.specaug.freq_masks": 0, "aug.specaug.time_masks": 0}
AUGMENTATION_OF_DECAR = {
    "aug.mixup.ratio": 0.0,
    "aug.rrc.enabled": False,
    "aug.specaug.warp": 5,
    "aug.specaug.freq_masks": 2,
    "aug.specaug.freq_width": 30,
    "aug.specaug.time_masks": 2,
    "aug.specaug.time_width": 40,
}
DECAR_ENCODER = {"frontend.kind": "decar1", "model.encoder": "efficientnet_b0", "model.pool": "max"}
BYOLA = {**FRONT_END, "frontend.kind": "byola", "aug.specaug.warp": 0}
DISTILLATION_LOSS = {
    "distill.alpha": 0.7,
    "distill.beta": 0.003,
    "distill.kl_temperature": 1.0,
    "distill.detach_teacher": False,
    "distill.mse": "cos_logits",
    "distill.init": "random",
    "distill.head": "mlp3",
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.lr": 0.007,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0,
}
FINE_TUNING = {
    "train.epochs": 50,
    "train.batch_size": 64,
    "optim.name": "adamw",
    "optim.weight_decay": 0.0,
    "optim.momentum": 0.9,
    "optim.lr": 0.001,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0,
    "finetune.augment": False,
}
"""DECAR, section 5: Adam, which AdamW without weight decay is, 0.001, batch 64, at most 50 epochs."""
DOCUMENTED: dict[tuple[PresetName, Stage], dict[str, Any]] = {
    # UnFuSeD, section 3 and 4
    ("paper", "pretrain"): {
        **BYOLA,
        "cluster.algo": "spherical",
        "cluster.k": 512,
        "cluster.every_epochs": 1,
        "train.epochs": 100,
        "train.batch_size": 512,
        "optim.lr": 0.005,
        "model.encoder": "audiontt",
        "model.dim": 2048,
        "model.proj_dim": 512,
        "model.l2_normalize": True,
        "model.prediction": "prototypes",
        "bank.fill": "training",
        "data.crop": "random",
        # where the text is silent, as recommended
        "optim.name": "larc",
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 10,
        "loss.temperature": 0.1,
        "data.crop_seconds": 0.95,
        "views.same_crop": True,
        "cluster.iterations": 10,
        "cluster.init": "random",
        "cluster.empty": "keep",
        "bank.init_mode": "train",
        "prototypes.freeze": True,
        "data.norm": "dataset",
    },
    ("paper", "distill"): {
        **DISTILLATION_LOSS,
        "train.epochs": 50,
        "train.batch_size": 512,
        "pseudo.feature": "encoder",
        "pseudo.k": "auto",
        "pseudo.pca_dim": 128,
        "pseudo.whiten": True,
        "pseudo.iterations": 20,
        "model.fc_layers": 2,
    },
    ("paper", "linear"): {
        "eval.lr": 0.001,
        "eval.lr_grid": (),
        "eval.batch_size": 32,
        "eval.epochs": 50,
        "eval.encoder": "full",
        "eval.encoder_mode": "eval",
        "eval.crop": "full",
        "eval.pool": "maxmean",
    },
    # the code that the authors released
    ("authors", "pretrain"): {
        **BYOLA,
        **AUGMENTATION_OF_THE_AUTHORS,
        "cluster.k": 1024,
        "train.epochs": 200,
        "train.batch_size": 512,
        "train.amp": "fp32",
        "optim.lr": 0.005,
        "optim.name": "larc",
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-6,
        "optim.trust": 0.001,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0,
        "optim.exclude_1d": False,
        "model.dim": 2048,
        "model.dropout": 0.3,
        "model.pool": "maxmean",
        "model.proj_hidden": 2048,
        "model.proj_dim": 512,
        "model.l2_normalize": False,
        "loss.temperature": 1.0,
        "views.same_crop": True,
        "data.crop_seconds": 0.98,
        "data.norm": "running",
        "bank.init_mode": "train",
        "cluster.iterations": 10,
    },
    ("authors", "distill"): {
        **DISTILLATION_LOSS,
        "train.epochs": 50,
        "train.batch_size": 256,
        "train.amp": "fp32",
        "data.crop_seconds": 12.0,
        "data.norm": "running",
        "aug.specaug.freq_masks": 0,
        "aug.specaug.time_masks": 0,
        "model.fc_layers": 3,
        "pseudo.feature": "projector",
        "pseudo.seconds": 12.0,
        "pseudo.crop": "start",
        "pseudo.splits": ("train",),
        "pseudo.refresh_epochs": 0,
        "pseudo.pca_dim": 128,
        "pseudo.whiten": True,
        "pseudo.iterations": 20,
        "pseudo.n_init": 1,
    },
    ("authors", "linear"): {
        "eval.lr": 0.001,
        "eval.lr_grid": (),
        "eval.batch_size": 32,
        "eval.epochs": 100,
        "eval.pool": "mean",
        "eval.crop": "random",
        "eval.seconds": "auto",
        "eval.encoder_mode": "train",
        "eval.standardize": False,
        "eval.select": "best_test",
    },
    # what trained best where it could be measured
    ("recommended", "pretrain"): {
        **BYOLA,
        **AUGMENTATION_OF_BYOL_A,
        "cluster.k": "auto",
        "train.epochs": 100,
        "train.batch_size": "auto",
        "optim.lr": 1.0,
        "optim.schedule": "cosine",
        "model.l2_normalize": True,
        "loss.temperature": 0.1,
        "bank.init_mode": "train",
        "data.crop": "random",
        "data.norm": "dataset",
        "train.amp": "auto",
    },
    ("recommended", "distill"): {
        **DISTILLATION_LOSS,
        "train.epochs": 50,
        "train.batch_size": "auto",
        "pseudo.pca_dim": "auto",
        "pseudo.n_init": 10,
        "pseudo.seconds": 0.0,
    },
    ("recommended", "linear"): {
        "eval.lr": 0.001,
        "eval.lr_grid": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
        "eval.batch_size": 32,
        "eval.epochs": 50,
        "eval.standardize": True,
        "eval.select": "valid",
    },
    # DECAR, section 5, and its authors' code where the paper is silent
    ("decar-v1", "pretrain"): {
        **DECAR_ENCODER,
        "model.projector": "dropout",
        "model.proj_hidden": 512,
        "model.proj_dim": 512,
        "model.l2_normalize": False,
        "model.proj_dropout": 0.5,
        "model.prediction": "linear",
        "optim.name": "sgd",
        "optim.lr": 0.05,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-5,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0,
        "optim.head_lr": 0.05,
        "optim.head_weight_decay": 1e-5,
        "train.batch_size": 64,
        "train.epochs": 100,
        "train.patience": 10,
        "cluster.algo": "pic",
        "cluster.iterations": 20,
        "cluster.pic_sigma": 0.2,
        "cluster.pic_neighbours": 5,
        "cluster.pic_alpha": 0.001,
        "cluster.pic_iterations": 200,
        "cluster.k": 512,
        "data.sampler": "uniform_clusters",
        "bank.fill": "pass",
        "data.crop_seconds": 10.0,
        **FRONT_END,
        **AUGMENTATION_OF_DECAR,
    },
    ("decar-v1", "distill"): {
        **DISTILLATION_LOSS,
        **DECAR_ENCODER,
        "train.epochs": 50,
    },
    ("decar-v1", "linear"): {
        **DECAR_ENCODER,
        "eval.lr": 0.001,
        "eval.lr_grid": (),
        "eval.batch_size": 64,
        "eval.epochs": 50,
        "eval.pool": "max",
    },
    ("paper", "finetune"): FINE_TUNING,
    ("recommended", "finetune"): FINE_TUNING,
    ("authors", "finetune"): {
        **FINE_TUNING,
        **AUGMENTATION_OF_THE_AUTHORS,
        "train.epochs": 100,
        "train.batch_size": 32,
        "train.amp": "fp32",
        "model.pool": "mean",
        "eval.select": "best_test",
    },
    ("decar-v1", "finetune"): {
        **FINE_TUNING,
        **DECAR_ENCODER,
        **AUGMENTATION_OF_DECAR,
        "data.crop_seconds": 10.0,
    },
}


def test_every_preset_and_stage_is_documented() -> None:
    assert set(DOCUMENTED) == {(name, stage) for name in get_args(PresetName) for stage in get_args(Stage)}


@pytest.mark.parametrize(("name", "stage"), DOCUMENTED)
def test_a_preset_has_its_documented_values(name: PresetName, stage: Stage) -> None:
    values = flatten(preset(name, stage))
    documented = DOCUMENTED[name, stage]
    assert {field: values[field] for field in documented} == documented


@pytest.mark.parametrize("name", get_args(PresetName))
def test_fine_tuning_augments_as_the_presets_pre_training_does(name: PresetName) -> None:
    assert preset(name, "finetune").aug == preset(name, "pretrain").aug


def test_whatever_a_preset_changes_is_documented() -> None:
    plain = flatten(Config())
    for (name, stage), documented in DOCUMENTED.items():
        changed = {field for field, value in flatten(preset(name, stage)).items() if value != plain[field]}
        assert changed <= set(documented), (name, stage)


def test_the_authors_encoder_of_distillation_has_a_third_connected_layer() -> None:
    encoder = build_encoder(preset("authors", "distill"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 9_518_208
    encoder = build_encoder(preset("paper", "distill"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 5_321_856


def test_differences_say_both_values_and_the_source() -> None:
    found = {line.field: line for line in differences(preset("authors", "linear"), preset("paper", "linear"))}
    assert {name: line.values for name, line in found.items()} == {
        "eval.pool": ("mean", "maxmean"),
        "eval.crop": ("random", "full"),
        "eval.encoder_mode": ("train", "eval"),
        "eval.standardize": (False, True),
        "eval.select": ("best_test", "valid"),
        "eval.epochs": (100, 50),
    }
    assert found["eval.epochs"].why.endswith("Source: paper section 4 (50); the authors' code has 100.")
    assert not differences(preset("paper", "distill"), preset("paper", "distill"))


def test_the_command_shows_what_differs_and_why(cli: Callable[..., Any]) -> None:
    done = cli("config", "--preset", "authors", "--diff", "recommended", "--json")
    assert done.code == 0, done.err
    lines = json.loads(done.out)
    assert {line["stage"] for line in lines} == {"pretrain", "distill", "linear", "finetune"}
    k = next(line for line in lines if (line["stage"], line["field"]) == ("pretrain", "cluster.k"))
    assert (k["authors"], k["recommended"]) == (1024, "auto") and "paper section 4 (512)" in k["why"]
    shown = cli("config", "--preset", "authors", "--diff", "recommended", "--stage", "linear").out
    assert "eval.epochs" in shown and "cluster.k" not in shown and "Source: paper section 4" in shown
    changed = cli("config", "--diff", "recommended", "--stage", "linear", "--set", "eval.epochs=3", "--json")
    assert [(line["--set"], line["recommended"]) for line in json.loads(changed.out)] == [(3, 50)]
    assert "cluster.k" in cli("config").out
