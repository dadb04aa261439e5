"""Commands of README and docs are taken by the command line; pages run, and Python prints what they show."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from command_lines import MissingParameter, parse
from outcomes import Cli
from pages import PAGES, PROGRAMS, ROOT, blocks, commands, mentions
from torch.distributed.run import get_args_parser

from unfused_fast.shards.sources.row import SourceRow

TARGETS = set(re.findall(r"^([\w-]+)[\w -]*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()

SMALL = "model.channels=1 model.proj_hidden=16 model.proj_dim=16 train.batch_size=16 train.amp=fp32"
"""The embeddings keep the paper's 2,048 features."""
SET = [word for value in SMALL.split() for word in ("--set", value)]
HEADS = ["--set", "eval.epochs=1"]
MORE = {
    ("train", "pretrain"): ["--epochs", "1", *SET, "--set", "cluster.k=4"],
    ("train", "distill"): ["--epochs", "1", *SET[:2], *SET[6:]],
    ("train", "linear"): HEADS,
    ("train", "finetune"): ["--epochs", "1"],
    ("train", "all"): ["--epochs", "1", *SET, *HEADS],
    ("evaluate",): HEADS,
    ("compare",): ["--epochs", "1", "--methods", "decar-v2", "--set", "model.channels=1", *HEADS],
}
"""Flags that make a command quick."""
LEFT_OUT = {
    ("doctor",): "its exit code is about the machine",
    ("bench",): "half a minute",
    ("import",): "its file is BYOL-A's",
    ("explore",): "it serves until Ctrl-C; tests/explore run it",
    ("export",): "ten seconds; tests/embedding/test_export.py",
}
RUN = {
    "README.md": (),
    "docs/start.md": (),
    "docs/stages.md": ("SHARDS",),
    "docs/use.md": ("RUN",),
    "docs/formats.md": ("SHARDS", "RUN"),
}
"""Page -> what its commands find, beside FOLDER and clip.wav."""


@pytest.fixture(scope="module")
def places(tone_rows: list[SourceRow], tones: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands are about, under the names they use."""
    made = tmp_path_factory.mktemp("places")
    for number, row in enumerate(tone_rows[:48]):
        folder = made / "FOLDER" / str(row.label)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(row.path), folder / f"{number // 3 + 1}.wav")
    shutil.copy(str(tone_rows[0].path), made / "clip.wav")
    shutil.copytree(tones, made / "SHARDS", ignore=shutil.ignore_patterns("*.cache"))
    more = MORE["train", "pretrain"]
    done = cli("train", "pretrain", made / "SHARDS", "--out", made / "RUN", "--device", "cpu", *more)
    assert done.code == 0, done.err
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_taken(page: Path) -> None:
    whole = [words for block in blocks(page) if block.language in ("", "bash") for words in commands(block.text)]
    for program, *arguments in whole:
        if program == "unfused-fast":
            parse(arguments)
        elif program == "torchrun":
            given = get_args_parser().parse_args(arguments)
            assert given.module and given.training_script == "unfused_fast"
            parse(given.training_script_args)
        elif program == "make":
            assert {word for word in arguments if "=" not in word} <= TARGETS
        elif program == "pip":
            named = re.findall(r"\.\[([\w,]+)\]", " ".join(arguments))
            assert {extra for extras in named for extra in extras.split(",")} <= {"dev", *EXTRAS}
        assert program == "unfused-fast" or all(
            (ROOT / word).exists() for word in arguments if re.match(r"(benchmarks|docs|requirements)/\S+\.\w+$", word)
        )


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_commands_in_sentences_are_taken(page: Path) -> None:
    """They may leave out what they are about, and name commands alone. The changelog has those of older versions."""
    for _, *arguments in mentions(page):
        with contextlib.suppress(MissingParameter):
            parse(arguments)


def test_every_command_of_a_page_is_found() -> None:
    """What looks like a command in a block of code is one of those above."""
    for page in PAGES:
        for block in blocks(page):
            seen = re.findall(rf"^(?:\$ )?(?:[A-Z_]+=\S* )*(?:{'|'.join(PROGRAMS)}) ", block.text, re.MULTILINE)
            assert block.language in ("", "bash") or not seen or block.language == "diff", (page, seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_pages_run(name: str, places: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with FOLDER and clip.wav, from top to bottom. A block of text is what the Python before it prints."""
    for found in ("FOLDER", "clip.wav", *RUN[name]):
        whole = places / found
        shutil.copytree(whole, tmp_path / found, dirs_exist_ok=True) if whole.is_dir() else shutil.copy(whole, tmp_path)
    monkeypatch.chdir(tmp_path)
    printed, names, ran = "", dict[str, object](), 0
    for language, text in blocks(ROOT / name):
        if language == "bash":
            for program, *arguments in commands(text):
                keys = {tuple(arguments[:1]), tuple(arguments[:2])}
                if program != "unfused-fast" or keys & LEFT_OUT.keys():
                    continue
                more = [flag for key in keys & MORE.keys() for flag in MORE[key]]
                done = cli(*arguments, *more)
                assert done.code == 0, (arguments, done.err)
                ran += 1
        elif language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, name, "exec"), names)
            printed = output.getvalue()
            ran += 1
        elif language == "text":
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(text, printed, flags), printed
    assert ran
