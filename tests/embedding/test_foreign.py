"""`import`: files of the public layouts, built here by a network written from their description."""

import json
from pathlib import Path

import pytest
import torch
from hostile_runs import Bomb
from outcomes import Cli, refused
from torch import Tensor, nn

import unfused_fast
from unfused_fast.data.front_end import log_mel


class TheirEncoder(nn.Module):
    """AudioNTT2020Task6 as its paper describes it: Conv-BN-ReLU-MaxPool three times, two linear layers a time step."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (1, channels, channels):
            layers += [nn.Conv2d(before, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(
            nn.Linear(channels * 8, dim), nn.ReLU(), nn.Dropout(0.3), nn.Linear(dim, dim), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        clips, channels, bins, times = x.shape
        steps: Tensor = self.fc(x.permute(0, 3, 2, 1).reshape(clips, times, bins * channels))
        return steps.amax(dim=1) + steps.mean(dim=1)


class TheirDecar(TheirEncoder):
    """The same with the heads that a checkpoint of DECAR-v2 holds."""

    def __init__(self) -> None:
        super().__init__(8, 24)
        self.projection_head = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
        self.prototypes = nn.Linear(6, 10, bias=False)


def trained(network: nn.Module) -> nn.Module:
    """With running statistics that are not those of the start."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        network(3 * torch.randn(4, 1, 64, 96) + 1)
    return network.eval()


def decar_file(path: Path) -> nn.Module:
    network = trained(TheirDecar())
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 90, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, path)
    return network


@pytest.mark.parametrize("layout", ["byol-a", "decar-v2"])
def test_imported_weights_give_what_the_other_network_gives(cli: Cli, tmp_path: Path, layout: str) -> None:
    file = tmp_path / "checkpoint.pth"
    if layout == "byol-a":
        network = trained(TheirEncoder(8, 24))
        # files of old torch have no counters
        torch.save({name: value for name, value in network.state_dict().items() if "num_batches" not in name}, file)
    else:
        network = decar_file(file)
    flags = ["--layout", layout, "--mean", -5.5, "--std", 5.0, "--json"]
    done = cli("import", file, tmp_path / "model", *flags)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["channels"], facts["n_mels"], facts["embedding_size"]) == (8, 64, 24)
    assert len(facts["left_out"]) == (0 if layout == "byol-a" else 10)
    clip = 0.1 * torch.randn(2, 30000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network((log_mel(clip)[:, None] + 5.5) / 5.0)
    found = unfused_fast.load(tmp_path / "model", device="cpu").embed(clip, 16000)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_wrong_names_and_shapes_are_listed(cli: Cli, tmp_path: Path) -> None:
    state = TheirEncoder(8, 24).state_dict()
    state["head.weight"] = state.pop("fc.3.bias")
    state["features.4.weight"] = torch.zeros(8, 8, 5, 5)
    torch.save(state, tmp_path / "a.pth")
    decar_file(tmp_path / "b.pth")
    flags = ["--layout", "byol-a", "--mean", 0, "--std", 1]
    done = cli("import", tmp_path / "a.pth", tmp_path / "m", *flags)
    named = "features.4.weight is (8, 8, 5, 5) float32, want (8, 8, 3, 3)", "head.weight is (24,) float32, want none"
    refused(done, "fc.3.bias is missing, want (24,)", *named)
    done = cli("import", tmp_path / "b.pth", tmp_path / "m", *flags)
    refused(done, "fc.0.bias is missing, want (2048,)", "and 53 more", "--layout")
    assert not (tmp_path / "m").exists()


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(cli: Cli, tmp_path: Path) -> None:
    sign, flags = tmp_path / "executed", ["--layout", "byol-a", "--mean", 0, "--std", 1]
    torch.save({"state_dict": TheirEncoder(8, 24).state_dict(), "extra": Bomb(sign)}, tmp_path / "bomb.pth")
    refused(cli("import", tmp_path / "bomb.pth", tmp_path / "m", *flags), "nothing in it was run")
    assert not sign.exists() and not (tmp_path / "m").exists()
    torch.load(tmp_path / "bomb.pth", weights_only=False)["extra"].close()  # the bomb is a real one
    assert sign.exists()
    for content in (b"", b"no checkpoint", b"PK\x03\x04 a broken zip"):
        (tmp_path / "a.pth").write_bytes(content)
        refused(cli("import", tmp_path / "a.pth", tmp_path / "m", *flags), "a.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(cli("import", tmp_path / "list.pth", tmp_path / "m", *flags), "no state_dict")
