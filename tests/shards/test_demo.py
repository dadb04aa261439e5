"""The recordings that come with the program."""

from __future__ import annotations

from unfused_fast.shards.demo import DEMO_NAMES, demo_rows, union_rows


def test_embedded_sets() -> None:
    spoken, notes = (demo_rows(name) for name in DEMO_NAMES)
    assert (len(spoken), len({row.label for row in spoken})) == (800, 5)
    assert (len(notes), len({row.label for row in notes})) == (616, 11)
    assert all(row.path.is_file() for row in spoken + notes)
    assert {row.split for row in spoken} == {"train", "valid", "test"}
    for rows in (spoken, notes):
        split_of: dict[str | None, set[str]] = {}
        for row in rows:
            split_of.setdefault(row.group, set()).add(row.split)
        assert not {group for group, splits in split_of.items() if "test" in splits and len(splits) > 1}


def test_union_of_the_embedded_sets_is_their_training_clips() -> None:
    union = union_rows()
    wanted = [row.path for name in DEMO_NAMES for row in demo_rows(name) if row.split == "train"]
    assert [row.path for row in union] == wanted
    assert {(row.label, row.split) for row in union} == {(None, "train")}
    assert len({row.source for row in union}) == len(union)
    assert all(row.source.split("/")[0] == (row.group or "").split("/")[0] for row in union)
