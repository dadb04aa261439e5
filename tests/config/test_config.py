"""Settings: every field documented with a source, parsed by type, presets as the recipe says."""

import pytest

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import field_texts, flatten, from_flat, preset, with_values
from unfused_fast.errors import UserError


def test_every_field_has_a_text_that_names_its_source() -> None:
    texts = field_texts()
    assert texts.keys() == flatten(Config()).keys()
    plain = {"train.seed", "train.save_every"}  # a choice of the user, not of a paper
    without = [name for name, (_, text) in texts.items() if "Source:" not in text and "Ours" not in text]
    assert set(without) <= plain


def test_values_are_parsed_by_type() -> None:
    config = with_values(
        Config(),
        {
            "cluster.k": "256",
            "optim.lr": "1e-2",
            "aug.rrc.enabled": "false",
            "aug.rrc.freq_scale": "0.5,1.2",
            "eval.lr_grid": "",
            "model.pool": "mean",
        },
    )
    assert (config.cluster.k, config.optim.lr, config.aug.rrc.enabled) == (256, 0.01, False)
    assert (config.aug.rrc.freq_scale, config.eval.lr_grid, config.model.pool) == ((0.5, 1.2), (), "mean")
    assert with_values(config, {"cluster.k": "auto"}).cluster.k == "auto"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cluster.k", "many", "whole number or auto"),
        ("cluster.k", "0", "at least 1"),
        ("optim.lr", "-1", "greater than 0"),
        ("optim.name", "adam", "one of larc, lars, sgd, adamw"),
        ("aug.rrc.enabled", "maybe", "true or false"),
        ("model", "3", "that is a section"),
        ("model.widht", "3", "no field 'widht'"),
        ("model.dim.x", "3", "not a section"),
        ("aug.rrc.freq_scale", "1", "want 2 numbers between commas"),
        ("train.epochs", "2.5", "whole number"),
        ("frontend.fmax_hz", "9000", "fmin < fmax <= 8000"),
    ],
)
def test_a_wrong_value_says_what_is_wanted(name: str, value: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_values(Config(), {name: value})


def test_flat_form_round_trips_strictly() -> None:
    config = preset("authors", "pretrain")
    assert from_flat(flatten(config)) == config
    with pytest.raises(UserError, match=r"missing fields \['model.dim'\]"):
        from_flat({name: value for name, value in flatten(config).items() if name != "model.dim"})


def test_the_paper_preset_is_the_papers_section_4() -> None:
    pretrain, distill, linear = (preset("paper", stage) for stage in ("pretrain", "distill", "linear"))
    assert (pretrain.cluster.k, pretrain.optim.lr, pretrain.train.batch_size, pretrain.train.epochs) == (
        512,
        0.005,
        512,
        100,
    )
    assert (pretrain.model.dim, pretrain.model.proj_dim, pretrain.model.l2_normalize) == (2048, 512, True)
    assert (distill.optim.lr, distill.train.batch_size, distill.train.epochs) == (0.007, 512, 50)
    assert (distill.distill.alpha, distill.distill.beta, distill.pseudo.k) == (0.7, 0.003, "auto")
    assert (linear.eval.lr, linear.eval.batch_size, linear.eval.epochs, linear.eval.lr_grid) == (0.001, 32, 50, ())


def test_the_authors_preset_is_the_recipes_column() -> None:
    pretrain, distill, linear = (preset("authors", stage) for stage in ("pretrain", "distill", "linear"))
    assert (pretrain.cluster.k, pretrain.train.epochs, pretrain.optim.schedule) == (1024, 200, "constant")
    assert (pretrain.model.l2_normalize, pretrain.loss.temperature, pretrain.bank.init_mode) == (False, 1.0, "train")
    assert pretrain.crop_frames == 99, "0.98 s"
    assert pretrain.aug.specaug.masks == 0 and pretrain.train.amp == "fp32"
    assert (distill.pseudo.feature, distill.pseudo.n_init) == ("projector", 1)
    assert (linear.eval.epochs, linear.eval.pool, linear.eval.standardize) == (100, "mean", False)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cluster.temperature", "loss.temperature"),
        ("optimiser.lr", "optim.lr"),
        ("train.epoch", "train.epochs"),
        ("epochs", "train.epochs or eval.epochs"),
        ("cluster.iteratoins", "cluster.iterations"),
    ],
)
def test_an_unknown_field_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {nearest}\?"):
        with_values(Config(), {name: "3"})


def test_a_wrong_choice_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"one of larc, lars, sgd, adamw; did you mean adamw\?"):
        with_values(Config(), {"optim.name": "adam"})
