"""`explore` and `similar` without a browser: neighbours, maps, clusters, columns, folder, server, search."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from outcomes import Cli, contents, refused
from PIL import Image
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from unfused_fast.config import FrontendConfig
from unfused_fast.embedding import embed_files
from unfused_fast.explore import embeddings, page_server
from unfused_fast.explore.clips import read_clips
from unfused_fast.explore.columns import categories, clusters_of, columns_in, columns_of
from unfused_fast.explore.folder import log_mel_picture
from unfused_fast.explore.layout import GAP, map_of, nearest, with_gaps_closed
from unfused_fast.explore.similar import windows
from unfused_fast.mel import mel_edges
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def blobs(each: int, groups: int, spread: float) -> torch.Tensor:
    """(each * groups, 24) unit rows around as many random directions, group by group."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(groups, 24, generator=generator).repeat_interleave(each, dim=0)
    return torch.nn.functional.normalize(centres + spread * torch.randn(len(centres), 24, generator=generator), dim=1)


@pytest.mark.parametrize(("rows", "k"), [(700, 10), (6, 10)])
def test_neighbours_are_those_of_scikit_learn(rows: int, k: int) -> None:
    unit = blobs(rows, 1, 3.0)
    ids, cosines = nearest(unit, k)
    known = NearestNeighbors(n_neighbors=min(k, rows - 1), metric="cosine").fit(unit.numpy())
    distances, expected = known.kneighbors()
    assert np.array_equal(ids, expected) and np.allclose(1 - cosines, distances, atol=1e-5)


def test_a_map_keeps_neighbours_together() -> None:
    unit = blobs(40, 4, 0.4)
    ids, cosines = nearest(unit, 15)
    made = {kind: map_of(unit, kind, ids, cosines) for kind in ("umap", "pca")}
    assert trustworthiness(unit.numpy(), made["umap"], n_neighbors=10, metric="cosine") > 0.85
    assert np.array_equal(made["umap"], map_of(unit, "umap", ids, cosines))
    assert all(found.shape == (160, 2) and np.abs(found).max() < 3 for found in made.values())
    few = blobs(5, 1, 1.0)
    assert np.isfinite(map_of(few, "umap", *nearest(few, 15))).all()


def test_far_islands_are_moved_to_the_map_as_a_whole() -> None:
    square = np.stack(np.meshgrid(np.linspace(0, 1, 30), np.linspace(0, 1, 30)), axis=2).reshape(-1, 2)
    island = np.array([[9.0, 0.5], [9.01, 0.52], [8.99, 0.48]])
    moved = with_gaps_closed(np.concatenate([square, island]).astype(np.float32))
    gap = GAP * 1.0  # of the square's side, since less than 0.5 % of the clips are on the island
    assert np.allclose(moved[:900], square, atol=1e-5)
    assert np.allclose(moved[900:], island - [8.99 - 1 - gap, 0], atol=1e-5)


def test_clusters_are_counted_by_hand() -> None:
    names = ["a"] * 19 + ["b"] + [None] * 10 + ["b"] * 10
    column, described = clusters_of(blobs(20, 2, 0.1), 2, categories("label", names))
    first, second = (described[int(column.values[row])] for row in (0, 20))
    assert (first["clips"], first["label"], first["purity"]) == (20, 0, 0.95)
    assert (second["clips"], second["label"], second["purity"]) == (20, 1, 1.0)
    centre = torch.nn.functional.normalize(blobs(20, 2, 0.1)[:20].sum(dim=0), dim=0)
    assert first["central"] == torch.argsort(blobs(20, 2, 0.1)[:20] @ centre, descending=True)[:5].tolist()


def test_columns_of_a_table_are_matched_with_clips(named: ShardSet, tmp_path: Path) -> None:
    own = {column.name: column for column in columns_of(named)}
    assert set(own) == {"label", "split", "seconds"}  # no groups of one clip, and nothing that all have
    sources = named.clips["source"].to_pylist()
    csv = tmp_path / "a.csv"
    csv.write_text(
        "path,mood,loudness\n" + "".join(f"{source},{n % 2},{n / 8}\n" for n, source in enumerate(sources[:9]))
    )
    table = pa.table(
        {"clip_id": [5, 3], "said": ["x", None], "embedding": [[1.0], [2.0]], "empty": [None, float("nan")]}
    )
    pq.write_table(table, tmp_path / "b.parquet")
    mood, loudness = columns_in(csv, named)
    assert mood.names == ("0", "1") and mood.values[:10].tolist() == [0, 1] * 4 + [0, -1]
    assert loudness.values[:9].tolist() == [n / 8 for n in range(9)] and np.isnan(loudness.values[9:]).all()
    (said,) = columns_in(tmp_path / "b.parquet", named, {"said", "split"})
    assert said.values[[3, 5]].tolist() == [-1, 0] and (said.name, said.names) == ("said (b)", ("x",))
    splits = named.clips["split"].to_pylist()
    mine = "".join(f"{n},{splits[n]},{n % 3},{'CG'[n % 2]},web\n" for n in range(9))
    csv.write_text(f"clip_id,split,label,key,source\n{mine}")
    label, key, source = columns_in(csv, named, {"label", "split"})  # split is the set's own
    assert (label.name, key.name, source.name) == ("label (a)", "key", "source")
    assert label.values[:4].tolist() == [0, 1, 2, 0] and key.names == ("C", "G") and source.names == ("web",)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name,x\na,1\n", "want one of clip_id, source, path"),
        ("clip_id,x\n1,2\n1,3\n", "1 row repeating a clip_id"),
        ("clip_id,x,x\n1,2,3\n", "several columns x"),
        ("clip_id,x\n9999,2\n", "give a table of this set"),
        (None, "want a CSV or parquet file"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    cli: Cli, named: ShardSet, pretrained: Path, tmp_path: Path, text: str | None, parts: str
) -> None:
    table, out = tmp_path / "a.csv", tmp_path / "page"
    if text is not None:
        table.write_text(text)
    given = [named.directory, "--encoder", pretrained, "--out", out, "--map", "pca", "--columns", table]
    refused(cli("explore", *given), table, parts)
    assert not out.exists()


def test_the_folder_has_every_clip_and_is_left_or_replaced(
    cli: Cli, named: ShardSet, pretrained: Path, page: Path, tmp_path: Path
) -> None:
    before = contents(page)
    about = json.loads((page / "data/explore.json").read_text(encoding="utf-8"))
    assert json.loads((page / "data/sources.json").read_text(encoding="utf-8")) == named.clips["source"].to_pylist()
    assert about["clips"] == len(list(page.rglob("*.flac"))) == len(list(page.rglob("*.png"))) == 96
    assert str(pretrained.parent) not in json.dumps(about)  # a page is for others; folders of this machine are not
    given = ["explore", named.directory, "--encoder", pretrained, "--out", page, "--map", "pca", "--json"]
    again = json.loads(cli(*given).out)
    assert again["made"] is False and contents(page) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfused_fast.explore.folder.kept_embeddings", None)
        many = ("--out", tmp_path / "many", "--clusters", 97)
        refused(cli(*given[:-1], *many), "--clusters 97: there are 96 clips; want 2 to 96 clusters")
    refused(cli(*given, "--clusters", 3), page, "holds a page made from other clips", "replace it with --overwrite")
    (tmp_path / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "empty")
        given[5] = Path()
        refused(cli(*given), "name a folder in it")
    (tmp_path / "link").symlink_to("empty")
    given[5] = tmp_path / "link"
    assert cli(*given).code == 0 and (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "index.html").exists()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("mine")
    given[5] = tmp_path / "new"
    refused(cli(*given, "--overwrite"), "it holds files that do not belong to a page of explore (mine.txt)")
    given[5] = tmp_path
    refused(
        cli(*given, "--overwrite"),
        tmp_path,
        "it holds files that do not belong to a page of explore (empty, link, mine.txt, ...)",
    )


def test_clips_of_the_folder_are_those_of_the_set(tone_rows: list[SourceRow], named: ShardSet, page: Path) -> None:
    source = named.clips["source"][7].as_py()
    file = next(row.path for row in tone_rows if source.endswith(row.source))
    pcm, rate = soundfile.read(page / "audio/0/000000007.flac", dtype="int16")
    assert rate == 16000 and np.array_equal(pcm, soundfile.read(file, dtype="int16")[0])
    frontend = FrontendConfig()
    tone = (0.5 * np.sin(2 * np.pi * 1500 * np.arange(16000 * 4) / 16000) * 32767).astype(np.int16)
    picture = np.asarray(log_mel_picture(tone, frontend))
    row = 63 - int(np.abs(mel_edges(frontend)[1:-1] - 1500).argmin())  # high frequencies above
    assert picture.shape == (64, 256) and (picture[:, 5:-5].argmax(axis=0) == row).all()
    assert not np.asarray(log_mel_picture(np.zeros(900, np.int16), frontend)).any()
    with Image.open(page / "mel/0/000000007.png") as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(log_mel_picture(pcm, frontend)))


def test_it_is_served_at_its_address_only_until_it_is_interrupted(
    cli: Cli, named: ShardSet, pretrained: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, seen = ("/", "/data/explore.json", "/wrong/", "/%2e%2e/", "/TOKEN/audio/"), dict[str, Any]()

    def ask(address: str) -> None:
        host, token = address.rsplit("/", 2)[0], address.split("/")[3]
        try:
            with urllib.request.urlopen(f"{address}data/explore.json") as answer:
                seen["page"] = json.load(answer)["clips"], answer.headers["Referrer-Policy"]
            for path in hidden:
                with pytest.raises(urllib.error.HTTPError) as refusal:
                    urllib.request.urlopen(host + path.replace("TOKEN", token))
                seen[path] = refusal.value.code
        finally:
            signal.raise_signal(signal.SIGINT)

    def served(folder: Path) -> tuple[Any, str]:
        server, address = page_server(folder)
        threading.Thread(target=ask, args=(address,)).start()
        return server, address

    monkeypatch.setattr("unfused_fast.explore.page_server", served)
    done = cli("explore", named.directory, "--encoder", pretrained, "--out", page, "--map", "pca", "--serve")
    assert done.code == 0 and "it was there already" in done.out and "(Ctrl-C ends)" in done.out, done.err
    assert seen == {"page": (96, "no-referrer"), **dict.fromkeys(hidden, 404)}


def query_of(shards: ShardSet, clip_id: int, path: Path, samples: int | None = None) -> Any:
    """Writes a clip of a set, or its beginning, and gives its samples."""
    ((_, _, pcm),) = read_clips(shards, [clip_id])
    soundfile.write(path, pcm[:samples], 16000, subtype="PCM_16")
    return pcm[:samples]


def test_similar_clips_are_those_of_numpy(
    cli: Cli, named: ShardSet, pretrained: Path, kept_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = kept_rows / np.linalg.norm(kept_rows, axis=1, keepdims=True)
    clip, query = tmp_path / "query.wav", 12
    query_of(named, query, clip)
    given = ["similar", named.directory, "--encoder", pretrained, "--query", clip, "--top", 7]
    found = json.loads(cli(*given, "--json").out)
    own, *order = np.argsort(-(unit @ unit[query]), kind="stable")[:8].tolist()
    sources, names = named.clips["source"].to_pylist(), named.manifest.label_names
    assert own == query and found["left_out"] == [sources[query]], "the query itself is no hit"
    assert [hit["path"] for hit in found["hits"]] == [sources[other] for other in order]
    assert np.allclose([hit["cosine"] for hit in found["hits"]], (unit @ unit[query])[order], atol=2e-4)
    labels = named.clips["labels"].to_pylist()
    assert [hit["label"] for hit in found["hits"]] == [
        ", ".join(names[one] for one in labels[other]) or None for other in order
    ]
    monkeypatch.setattr(embeddings, "embed_files", None)  # the second time nothing is embedded
    shown = cli(*given).out
    assert "label" in shown and f"left out, with the same samples as the query: {sources[query]}" in shown
    (tmp_path / "no.wav").write_text("no audio")
    refused(cli(*given[:5], tmp_path / "no.wav"), "no.wav", "not audio", "; give another recording")
    refused(cli(*given[:5], tmp_path / "gone.wav"), "gone.wav: no such file")
    soundfile.write(tmp_path / "no.wav", np.zeros(16), 16000)
    refused(cli(*given[:5], tmp_path / "no.wav"), "no.wav: too short: 0.001 s; give another recording")
    monkeypatch.setattr("unfused_fast.explore.similar.LONGEST_QUERY_SECONDS", 0.5)
    refused(cli(*given), "query.wav: longer than 0.5 s; give a shorter query")


def test_ctrl_c_says_that_the_same_command_continues(
    cli: Cli, named: ShardSet, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so it does: the second time half of the files are left."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path))
    monkeypatch.setattr("unfused_fast.embedding.reading.BLOCK_FILES", 4)
    seen = list[int]()

    def pressed(files: int, *_: object) -> None:
        seen.append(files)
        if len(seen) == 2:
            raise KeyboardInterrupt

    def embed(*given: Any, progress: Any, **more: Any) -> Any:
        return embed_files(*given, **more, workers=0, progress=pressed)

    monkeypatch.setattr(embeddings, "embed_files", embed)
    query_of(named, 0, tmp_path / "query.wav")
    given = ["similar", named.directory, "--encoder", pretrained, "--query", tmp_path / "query.wav"]
    done = cli(*given)
    assert (
        done.code == 130
        and done.err.splitlines()[-1] == "stopped; embeddings so far are kept; run the same command again to continue"
    )
    assert cli(*given).code == 0 and seen[2] > seen[0] > 0 and seen[-1] == len(named.clips)


def test_embeddings_of_which_a_part_is_damaged_are_made_again(
    cli: Cli, named: ShardSet, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of few clips without labels: no column of them is shown."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path))
    monkeypatch.setattr(embeddings, "embed_files", partial(embed_files, workers=0))
    (tmp_path / "sounds").mkdir()
    for clip in (0, 1, 2):
        query_of(named, clip, tmp_path / "sounds" / f"{clip}.wav")
    query = tmp_path / "sounds" / "0.wav"
    given = ["similar", tmp_path / "sounds", "--encoder", pretrained, "--query", query, "--frames"]
    (tmp_path / "sounds" / "no.wav").write_text("no audio")
    first = cli(*given, "--json")
    assert "1 of 4 recordings cannot be used: " in first.err and "no.wav; unfused-fast embed says why\n" in first.err
    before = first.out
    assert len(json.loads(before)["hits"]) == 2 and "label" not in cli(*given).out
    (kept,) = tmp_path.glob("embeddings/*.zarr")
    damages = [(name, cut) for name in ("embeddings/c/0/0", "path/c/0", "zarr.json") for cut in (False, True)]
    for name, cut in (*damages, ("rows/c/0", True), ("embeddings/zarr.json", False), (".", False)):
        for path in [path for path in kept.rglob("*") if path.is_file()] if name == "." else [kept / name]:
            if cut:
                path.write_bytes(path.read_bytes()[:-1])
            else:
                path.unlink()
        assert cli(*given, "--json").out == before, (name, cut)


def test_moments_are_found_in_a_long_recording(
    cli: Cli, named: ShardSet, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its pieces in a set, by the second of the recording at which they begin."""
    monkeypatch.setattr(embeddings, "embed_files", partial(embed_files, workers=0))
    query = query_of(named, 3, tmp_path / "query.wav", 16000 * 96 // 100)
    long = (300 * np.random.default_rng(0).standard_normal(16000 * 40)).astype(np.int16)
    for second in (4.0, 21.6):
        long[round(16000 * second) :][: len(query)] = query
    field, shards = tmp_path / "field", tmp_path / "set"
    field.mkdir()
    soundfile.write(field / "long.wav", long, 16000)
    soundfile.write(field / "short.wav", long[:8000], 16000)
    given = ["similar", field, "--encoder", pretrained, "--query", tmp_path / "query.wav", "--top", 3, "--json"]
    hits = json.loads(cli(*given, "--frames").out)["hits"]
    assert sorted(hit["seconds"] for hit in hits[:2]) == pytest.approx([4.0, 21.6], abs=0.1)
    assert all(hit["path"].endswith("long.wav") for hit in hits[:2]) and hits[1]["cosine"] > hits[2]["cosine"]
    note = "Long recordings were compared as a whole; --frames finds moments within them."
    assert note in " ".join(cli(*given[:-1]).out.split())
    assert note not in " ".join(cli(*given[:-1], "--frames").out.split())
    pack(source_rows(field), shards, workers=0)  # long.wav is cut into four
    given[1] = shards
    of_set = json.loads(cli(*given, "--frames").out)["hits"]
    assert [hit["seconds"] for hit in of_set[:2]] == pytest.approx([hit["seconds"] for hit in hits[:2]], abs=0.1)
    given[-2] = 5
    assert {hit["seconds"] for hit in json.loads(cli(*given).out)["hits"]} == {0.0, 10.0, 20.0, 30.0}
    table = pq.read_table(shards / "clips.parquet").drop_columns("start")  # as sets were before
    pq.write_table(table, shards / "clips.parquet")
    shown = cli(*given[:-1]).out
    assert "0.00" not in shown and note not in shown and "pack the set again to see seconds" in " ".join(shown.split())
    assert {hit["seconds"] for hit in json.loads(cli(*given).out)["hits"]} == {None}
    given[1], given[-2] = field, 3
    monkeypatch.setattr("unfused_fast.explore.similar.STEPS", 7)  # blocks of any size give the same
    assert json.loads(cli(*given, "--frames").out)["hits"] == hits


@pytest.mark.parametrize("pool", ["maxmean", "mean", "max"])
def test_windows_are_pooled_as_clips_are(pool: Any) -> None:
    steps = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    parts = steps.unfold(0, 4, 1)  # (6, 5, 4)
    expected = {"maxmean": parts.mean(2) + parts.amax(2), "mean": parts.mean(2), "max": parts.amax(2)}[pool]
    assert torch.allclose(windows(steps, 4, pool), expected, atol=1e-6)
