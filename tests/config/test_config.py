"""Settings: every field documented with a source, parsed by type, refused with what is wanted."""

import json

import pytest

from unfused_fast.config.checks import feature_layers
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import field_texts, flatten, from_flat, preset, with_values
from unfused_fast.errors import UserError


def test_every_field_has_a_text_that_names_its_source() -> None:
    texts = field_texts()
    assert list(texts) == list(flatten(Config()))
    plain = {"train.seed", "train.save_every"}  # a choice of the user, not of a paper
    without = [name for name, (_, text) in texts.items() if "Source:" not in text and "Ours" not in text]
    assert set(without) <= plain


def test_values_are_parsed_by_type() -> None:
    given = {
        "cluster.k": "256",
        "optim.lr": "1e-2",
        "aug.rrc.enabled": "false",
        "aug.rrc.freq_scale": "(0.5, 1.2)",
        "eval.lr_grid": "",
        "model.pool": "mean",
        "model.fc_layers": "3",
        "pseudo.splits": "train,valid",
        "train.batch_size": "auto",
    }
    parsed = {name: flatten(with_values(Config(), given))[name] for name in given}
    assert list(parsed.values()) == [256, 0.01, False, (0.5, 1.2), (), "mean", 3, ("train", "valid"), "auto"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("cluster.k=many", "cluster.k = many: want a whole number or auto or whole numbers between commas, at least 1"),
        ("cluster.k=512,0", "cluster.k = 512,0: want .*, at least 1"),
        ("cluster.k=", "cluster.k is empty: want at least 1 number, or auto"),
        ("train.epochs=2.5", "train.epochs = 2.5: want a whole number, at least 1"),
        ("train.batch_size=1", "train.batch_size = 1: want a whole number or auto, at least 2"),
        ("optim.lr=nan", "optim.lr = nan: want a number, greater than 0"),
        ("optim.lr=inf", "optim.lr = inf: want a number, greater than 0"),
        ("model.dim=10000000000", "model.dim = 10000000000: want whole numbers below 2147483648"),
        (f"model.dim={'9' * 90}", r"model.dim = 9{77}\.\.\.: want whole numbers below 2147483648"),
        ("eval.lr_grid=0.1,0", "eval.lr_grid = 0.1,0: want numbers between commas, greater than 0"),
        ("distill.alpha=1.1", "distill.alpha = 1.1: want a number, from 0 to 1"),
        ("optim.name=adam", r"optim.name = adam: want one of larc, lars, sgd, adamw, muon; did you mean adamw\?"),
        ("optim.name=muon optim.lr=1", "optim.lr = 1, but optim.name = muon .* want at most 0.1, such as 0.001"),
        ("frontend.sample_rate_hz=8000", "frontend.sample_rate_hz = 8000: want 16000$"),
        ("aug.rrc.enabled=maybe", "true or false"),
        ("aug.rrc.freq_scale=1", "want 2 numbers between commas"),
        ("aug.rrc.freq_scale=2,1", "want the smaller number first"),
        ("frontend.fmax_hz=9000", "fmin < fmax <= 8000"),
        ("pseudo.splits=test", "want train, and optionally others, each once"),
        (
            "prototypes.freeze=false method.name=decar-v1",
            "decar-v1 does not read it; leave it at True, or use --method decar-v2",
        ),
        ("cluster.algo=pic", "use it with --method decar-v1"),
        ("cluster.algo=pca_kmeans", "use it with --method decar-v1"),
        ("data.sampler=uniform_clusters", "bank.fill=pass"),
        ("bank.view=training views.same_crop=false", "does not read it; .* use bank.view=separate, loss.instance"),
        ("bank.fill=pass views.same_crop=false", "bank.fill=training with bank.view=separate, loss.instance=simclr"),
        (
            "method.name=decar-v1 bank.fill=pass views.same_crop=false",
            "a step with one view of a clip .bank.fill = pass. .* use bank.fill=training with bank.view=separate$",
        ),
        ("cluster.k=8,1", "cluster.k = 1: a single cluster teaches nothing; want at least 2"),
        ("pseudo.k=1", "pseudo.k = 1: a single cluster"),
        ("cluster.init=warm method.name=decar-v1", r"cluster.init=random or kmeans\+\+"),
        ("cluster.algo=pca_kmeans method.name=decar-v1 cluster.empty=split", "does not read it"),
        ("cluster.algo=pic method.name=decar-v1 cluster.n_init=2", "pic does not read it"),
        ("cluster.algo=pic method.name=decar-v1 cluster.k=2,3", "pic finds the number of clusters"),
        ("pseudo.crop=random", "pseudo.seconds = 0 takes whole clips"),
        ("pseudo.feature=block4", "pseudo.feature = block4: want layers .* block1, block2, block3, encoder"),
        ("eval.features=encoder+encoder", "eval.features = encoder.encoder: want layers .*, each once"),
        ("eval.features=all eval.encoder=student3", "eval.features = all, but eval.encoder = student3 means block3"),
        ("data.crop_seconds=0.05", "data.crop_seconds = 0.05: too short for an encoder; want at least 0.07"),
        ("eval.crop=centre eval.seconds=0.05", "eval.seconds = 0.05: too short"),
        ("pseudo.seconds=0.05", "pseudo.seconds = 0.05: too short"),
        ("eval.seconds=3", "eval.crop = full takes whole clips"),
        ("frontend.kind=decar1 frontend.n_fft=256", "wants at least its window of 400"),
        ("model=3", "--set model: that is a section; name a field of it: encoder, dim"),
        ("model.dim.x=3", r"no such field; did you mean model.dim"),
        ("cluster.temperature=3", r"did you mean loss.temperature\?"),
        ("optimiser.lr=3", "did you mean optim.lr or eval.lr"),
        ("epochs=3", "did you mean .*train.epochs"),
        ("cluster.iteratoins=3", "did you mean cluster.iterations"),
    ],
)
def test_a_wrong_setting_says_what_is_wanted(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_values(Config(), dict(item.split("=", 1) for item in setting.split()))


def test_a_recorded_config_is_read_though_a_later_version_has_more_fields() -> None:
    config = with_values(preset("authors", "pretrain"), {"cluster.k": "256,512"})
    recorded = json.loads(json.dumps(flatten(config)))
    unread = {**flatten(preset("recommended", "pretrain", "byol")), "cluster.k": 8}
    assert from_flat(unread).cluster.k == 8, "a setting that earlier versions took and did not read"
    assert from_flat(recorded) == config
    del recorded["loss.temperature"]  # as if it had come later
    assert from_flat(recorded) == with_values(config, {"loss.temperature": Config().loss.temperature})
    with pytest.raises(UserError, match=r"config of another version: unknown fields loss\.gamma; train again"):
        from_flat({**recorded, "loss.gamma": 1.0})


def test_the_names_of_features_are_listed() -> None:
    with pytest.raises(UserError, match=r"there are block1, block2, block3, encoder, and projector alone$"):
        with_values(Config(), {"eval.features": "foo"})
    with pytest.raises(UserError, match=r"encoder$"):
        feature_layers("foo", "features")
