"""`unfused-fast clusters`: sizes, central clips and purity against numpy and scikit-learn; what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from outcomes import refused
from sklearn.metrics import normalized_mutual_info_score

from unfused_fast.shards.sets.table import open_shards


@pytest.fixture(scope="module")
def bank(pretrained: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and assignments as they lie on disk."""
    group = zarr.open_group(pretrained / "bank.zarr" / "gen-000002", mode="r")
    return group["embeddings"][:], group["assignments"][:]


def test_sizes_central_clips_and_purity_are_numpys(cli, pretrained: Path, tones: Path, bank) -> None:
    done = cli("clusters", pretrained, "--shards", tones, "--top", 3, "--json")
    assert done.code == 0, done.err
    found, (rows, ids) = json.loads(done.out), bank
    clips = open_shards(tones).clips_in("train")
    labels, sources = clips.column("label").to_numpy(), clips.column("source").to_pylist()
    names = open_shards(tones).manifest.label_names
    assert [entry["clips"] for entry in found["found"]] == sorted(np.bincount(ids)[np.unique(ids)], reverse=True)
    majority = 0
    for entry in found["found"]:
        members = np.flatnonzero(ids == entry["cluster"])
        assert entry["clips"] == len(members) and entry["share"] == pytest.approx(len(members) / 60, abs=1e-6)
        centre = rows[members].mean(axis=0)
        cosines = rows[members] @ (centre / np.linalg.norm(centre))
        best = np.sort(cosines)[::-1][:3]
        assert [clip["cosine"] for clip in entry["central"]] == pytest.approx(best, abs=1e-4)
        for clip in entry["central"]:
            assert clip["source"] == sources[clip["clip_id"]] and ids[clip["clip_id"]] == entry["cluster"]
        counts = np.bincount(labels[members], minlength=len(names))
        majority += counts.max()
        assert entry["purity"] == pytest.approx(counts.max() / len(members), abs=1e-4)
        assert counts[names.index(entry["label"])] == counts.max()
    assert found["purity"] == pytest.approx(majority / 60, abs=1e-4)
    expected = normalized_mutual_info_score(labels, ids, average_method="geometric")
    assert found["label_nmi"] == pytest.approx(expected, abs=1e-4)
    assert found["clusters"] + found["empty_clusters"] == 4 and found["labelled_clips"] == 60


def test_the_table_and_the_picture(cli, pretrained: Path, tones: Path, tmp_path: Path) -> None:
    done = cli("clusters", pretrained, "--shards", tones, "--top", 1, "--png", tmp_path / "sizes.png")
    assert done.code == 0, done.err
    assert "purity" in done.out and ".wav" in done.out and "label nmi" in done.out
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "--limit" not in done.out, "all are shown"
    bare = cli("clusters", pretrained, "--top", 0)
    assert bare.code == 0 and "purity" not in bare.out and "central" not in bare.out


def test_the_largest_are_shown(cli, pretrained: Path, bank) -> None:
    sizes = np.bincount(bank[1])
    few, every = cli("clusters", pretrained, "--limit", 2), cli("clusters", pretrained, "--limit", 0)
    assert few.code == every.code == 0
    present = (sizes > 0).sum()
    assert present > 2 and f"the 2 largest of {present} clusters; --limit 0 shows all" in few.out
    shown = [[line for line in done.out.splitlines() if "%" in line] for done in (few, every)]
    assert [len(lines) for lines in shown] == [2, present]
    for line, cluster in zip(shown[0], np.argsort(-sizes, kind="stable"), strict=False):
        assert line.replace("│", " ").split()[:2] == [str(cluster), str(sizes[cluster])]
    assert len(json.loads(cli("clusters", pretrained, "--limit", 1, "--json").out)["found"]) == present
    assert "the targets of epoch 2; cosines and spread: of the bank as saved after it" in few.out


def test_without_labels_nothing_is_judged(cli, unlabelled: Path, tiny: list[str], tmp_path: Path) -> None:
    assert cli("train", "pretrain", unlabelled, "--out", tmp_path / "run", "--epochs", 1, *tiny).code == 0
    found = json.loads(cli("clusters", tmp_path / "run", "--shards", unlabelled, "--json").out)
    assert "purity" not in found and "label" not in found["found"][0] and "source" in found["found"][0]["central"][0]


def test_what_is_no_such_run_or_another_set_is_refused(
    cli, pretrained: Path, tones: Path, unlabelled: Path, tmp_path: Path
) -> None:
    assert "no config.json" in cli("clusters", tmp_path).error
    assert "another set" in cli("clusters", pretrained, "--shards", unlabelled).error
    assert "cannot be written" in cli("clusters", pretrained, "--png", tmp_path / "none" / "a.png").error
    assert "cannot be written" in cli("clusters", pretrained, "--png", tmp_path / "a.nothing").error


@pytest.mark.parametrize("spoil", ["bank", "batch", "damage"])
def test_an_older_whole_checkpoint_is_used_and_said(cli, pretrained: Path, tmp_path: Path, spoil: str) -> None:
    """Of two: where the newer lies within an epoch, while its bank is filled or later, or is damaged; then both."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    assert json.loads(cli("clusters", run, "--json").out)["epoch"] == 2
    says = "is damaged" if spoil == "damage" else "whose memory bank is not complete yet"
    for epoch in (2, 1):
        path = run / f"checkpoints/epoch-{epoch:06d}.json"
        if spoil == "damage":
            path.with_suffix(".safetensors").write_bytes(b"x")
        elif spoil == "bank":
            path.write_text(json.dumps({**json.loads(path.read_text()), "bank": "here"}))
        else:
            for old in (path, path.with_suffix(".safetensors")):
                old.rename(old.with_stem(f"{old.stem}-batch-000000002"))
            path = path.with_stem(f"{path.stem}-batch-000000002")
            path.write_text(json.dumps({**json.loads(path.read_text()), "batch": 2, "bank": "here"}))
        done = cli("clusters", run, "--json")
        if epoch == 2:
            ids = zarr.open_group(run / "bank.zarr/gen-000001", mode="r")["assignments"][:]
            assert done.code == 0 and says in done.err and "clusters of epoch 1" in done.err
            assert json.loads(done.out)["found"][0]["clips"] == np.bincount(ids).max()
    refused(done, says, "no usable checkpoint", *(["--resume"] if spoil != "damage" else []))
