"""hf://USER/NAME against a stand-in of the Hub that `huggingface_hub` talks to as it does to the real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, Hub, hub_server
from outcomes import Cli, refused

import unfused_fast
from unfused_fast import Embedder
from unfused_fast.errors import UserError
from unfused_fast.hub import hub_folder

WAVE = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 20000).astype(np.float32))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, as HF_ENDPOINT, HF_HOME and HF_TOKEN name it to a process that has not loaded the library yet."""
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub_folder.cache_clear()
        yield server
    hub_folder.cache_clear()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    from huggingface_hub import constants

    def go() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub_folder.cache_clear()

    return go


def test_an_encoder_comes_back_as_it_was_pushed(hub: Hub, cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    done = cli("export", pretrained, "--hub", "hf://me/tones", "--private", "--json")
    assert done.code == 0, done.err
    repository = hub.repositories["me/tones"]
    files = repository.commits[repository.branches["main"]]
    assert repository.private and set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert json.loads(done.out)[0]["commit"].endswith(f"/me/tones/commit/{repository.branches['main']}")
    assert str(pretrained.parent) not in files["config.json"].decode() + files["README.md"].decode()
    card = files["README.md"].decode()
    about = yaml.safe_load(card.split("---")[1])
    assert about["library_name"] == "unfused-fast" and 'load("hf://me/tones")' in card and "\n# me/tones\n" in card

    loaded, local = unfused_fast.load("hf://me/tones", "cpu"), unfused_fast.load(pretrained, "cpu")
    assert torch.equal(loaded.embed(WAVE, 16000), local.embed(WAVE, 16000)) and loaded.digest == local.digest
    assert loaded.name == f"hf://me/tones@{repository.branches['main']}"
    assert [Embedder.from_pretrained(name, device="cpu").digest for name in ("me/tones", str(pretrained))] == [
        local.digest
    ] * 2
    local.save_pretrained(tmp_path / "folder")
    assert unfused_fast.load(tmp_path / "folder", "cpu").digest == local.digest


def test_revisions(hub: Hub, pretrained: Path, offline: Callable[[], None]) -> None:
    encoder = unfused_fast.load(pretrained, "cpu")
    first = encoder.push_to_hub("me/tones").rpartition("/")[2]
    before = encoder.digest
    torch.nn.init.zeros_(encoder.encoder.fully_connected[0].bias)
    second = encoder.push_to_hub("hf://me/tones@wide", message="Another", private=False).rpartition("/")[2]
    after = encoder.digest
    assert before != after and first != second, "what is pushed is the encoder in memory"
    for name, digest in (("me/tones", before), ("me/tones@wide", after), (f"me/tones@{first}", before)):
        hub_folder.cache_clear()
        assert unfused_fast.load(f"hf://{name}", "cpu").digest == digest
    assert Embedder.from_pretrained("me/tones", revision=second, device="cpu").digest == after
    encoder.push_to_hub("me/tones")  # main moves
    hub_folder.cache_clear()
    assert unfused_fast.load("hf://me/tones", "cpu").digest == after
    asked = len(hub.asked)
    hub_folder.cache_clear()
    assert unfused_fast.load(f"hf://me/tones@{first}", "cpu").digest == before and len(hub.asked) == asked, (
        "a commit stays"
    )
    offline()
    assert unfused_fast.load("hf://me/tones", "cpu").digest == after and len(hub.asked) == asked
    with pytest.raises(UserError, match=r"hf://me/others: the Hub does not answer, and the cache has no copy"):
        unfused_fast.load("hf://me/others", "cpu")
    with pytest.raises(UserError, match=r"it is not on the Hub; leave the revision out"):
        Embedder.from_pretrained(pretrained, revision="main")


def test_every_command_with_an_encoder_takes_it(
    hub: Hub, cli: Cli, tones: Path, tiny: list[str], pretrained: Path, tmp_path: Path
) -> None:
    assert cli("export", pretrained, "--hub", "hf://me/tones").code == 0
    few, name = ["--set", "eval.epochs=1", "--json"], "hf://me/tones"
    pinned = f"{name}@{hub.repositories['me/tones'].branches['main']}"
    for command in (
        ("embed", tones, "--encoder", name, "--out", tmp_path / "a.npz", "--workers", 1),
        ("train", "linear", tones, "--encoder", name, "--out", tmp_path / "linear", *few),
        ("train", "finetune", tones, "--encoder", name, "--out", tmp_path / "tuned", "--epochs", 1, *tiny[-2:]),
        ("train", "distill", tones, "--teacher", name, "--out", tmp_path / "student", "--epochs", 1, *tiny),
        ("evaluate", tones, "--encoder", f"Tones={name}", "--out", tmp_path / "table", *few),
        ("export", name, "--hub", tmp_path / "copy"),
    ):
        done = cli(*command)
        assert done.code == 0, (command, done.err)
    for run, key in (("linear", "encoder"), ("tuned", "encoder"), ("student", "teacher")):
        recorded, result = (json.loads((tmp_path / run / file).read_text()) for file in ("config.json", "result.json"))
        assert recorded["inputs"][key] == result[key] == pinned, "the commit is recorded, not the branch"
    assert unfused_fast.load(tmp_path / "copy", "cpu").digest == unfused_fast.load(pretrained, "cpu").digest
    card = (tmp_path / "linear" / "result.json").read_text()
    assert "hf:/me" not in card
    tuned = cli("export", tmp_path / "tuned", "--hub", "hf://me/tuned")
    assert tuned.code == 0, tuned.err
    repository = hub.repositories["me/tuned"]
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    (entry,) = yaml.safe_load(card.split("---")[1])["model-index"]
    result = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert [one["value"] for one in entry["results"][0]["metrics"]] == [result["valid"], result["test"]]


def test_the_environment_names_the_hub(hub: Hub, pretrained: Path, tmp_path: Path) -> None:
    """To a process of its own, since huggingface_hub reads it when it is imported."""
    unfused_fast.load(pretrained, "cpu").push_to_hub("me/tones")
    variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = "from unfused_fast.hub import hub_folder; print(hub_folder('hf://me/tones'))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home")
    assert unfused_fast.load(folder, "cpu").digest == unfused_fast.load(pretrained, "cpu").digest


def test_what_cannot_be_loaded(hub: Hub, cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    encoder = unfused_fast.load(pretrained, "cpu")
    for own in ("me/tones", "me/empty", "me/damaged"):
        encoder.push_to_hub(own)
    empty, damaged = (hub.repositories[own] for own in ("me/empty", "me/damaged"))
    empty.commits[empty.branches["main"]] = {"README.md": b"# Nothing"}
    torch.nn.init.zeros_(encoder.encoder.fully_connected[0].bias)
    encoder.push_to_hub("me/other")
    other = hub.repositories["me/other"]
    damaged.commit("main", {"model.safetensors": other.commits[other.branches["main"]]["model.safetensors"]})
    for name, *says in (
        ("hf://me/none", "hf://me/none: not on the Hub, or not for you", "hf auth login"),
        ("hf://me/tones@none", "hf://me/tones@none: no such revision"),
        ("hf://me/empty", "no model of unfused-fast: it has no config.json and no model.safetensors"),
        ("hf://me", "hf://me: want hf://USER/NAME"),
        ("hf://datasets/me/tones", "want hf://USER/NAME"),
        ("hf://me/damaged", "is not the file of config.json"),
    ):
        done = cli("export", name, "--hub", tmp_path / "copy")
        refused(done, *says)
        assert not re.search(r"hf:/\w", done.err), "both slashes"


def test_without_a_right_or_the_library(
    hub: Hub, cli: Cli, pretrained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    refused(cli("export", pretrained, "--hub", "hf://me/tones"), "hf://me/tones: ", "hf auth login", "HF_TOKEN")
    assert cli("export", pretrained, "--hub", tmp_path / "copy", "--private").code == 2
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(cli("export", "hf://me/tones", "--hub", tmp_path / "copy"), "needs huggingface_hub", "pip install '.[hub]'")
