"""The page in a browser: what is drawn, heard, filtered and saved, by pointer and by keyboard."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfused_fast.shards.sets.table import ShardSet

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here; pip install playwright")


class Quiet(SimpleHTTPRequestHandler):
    """The library's plain server, as any web server may be: no byte ranges, no types for .flac."""

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def address(page: Path) -> Iterator[str]:
    """Where a plain web server has the page, below a path of its own."""
    handler = partial(Quiet, directory=str(page.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{page.name}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Without a GPU."""
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def tab(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page, open; nothing goes wrong in it, and it asks no other server for anything."""
    width, height = getattr(request, "param", (1200, 760))
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    opened, faults, asked = context.new_page(), list[str](), list[str]()
    opened.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#app:not([hidden])")
    yield opened
    assert faults == [] and opened.evaluate("window.broken") is None
    assert [url for url in asked if not url.startswith((address, f"blob:{address.rsplit('/', 2)[0]}", "data:"))] == []
    context.close()


@pytest.fixture
def about(page: Path) -> dict[str, Any]:
    """What the page knows, read from its files."""
    found = json.loads((page / "data/explore.json").read_text(encoding="utf-8"))
    found["sources"] = json.loads((page / "data/sources.json").read_text(encoding="utf-8"))
    found["map"] = np.fromfile(page / "data/map.f32", "<f4").reshape(-1, 2)
    for number, column in enumerate(found["columns"]):
        column["values"] = np.fromfile(page / f"data/column-{number}.{'i32' if column['names'] else 'f32'}", "<i4")
    return dict(found)


def on_screen(tab: Any, places: Any) -> Any:
    """Where the page draws places (N, 2): all of them in the canvas, in the same order and proportions."""
    drawn = tab.evaluate(
        """() => { const c = document.getElementById("points");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        const r = c.width / c.clientWidth, g = [d[0], d[1], d[2]].join(), f = [];
        for (let y = 0; y < c.height; y++) for (let x = 0; x < c.width; x++) {
          const i = 4 * (y * c.width + x); if ([d[i], d[i + 1], d[i + 2]].join() !== g) f.push([x / r, y / r]); }
        return f; }"""
    )
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    span = places.max(axis=0) - places.min(axis=0)
    box = tab.locator("#points").bounding_box()
    shares = (places - places.min(axis=0)) / span
    shares[:, 1] = 1 - shares[:, 1]
    radius = 5.0
    return low + radius + shares * (high - low - 2 * radius) + [box["x"], box["y"]]


def until(tab: Any, expression: str) -> None:
    """Waits for it to be true. Ours: Playwright's wait_for_function is eval, which the page's policy refuses."""
    for _ in range(200):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(expression)


def picked(tab: Any) -> str:
    """The source of the clip that is shown."""
    return str(tab.locator("#path").text_content())


def test_the_map_is_drawn_and_a_click_plays_the_clip_under_it(tab: Any, about: dict[str, Any]) -> None:
    places = on_screen(tab, about["map"])
    alone = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(alone, np.inf)
    clip = int(alone.min(axis=1).argmax())  # the one farthest from others
    tab.mouse.move(*places[clip])
    tab.wait_for_selector("#hover:not([hidden])")
    until(tab, "document.querySelector('#hover img').naturalWidth > 50")
    assert tab.locator("#hover span").text_content() == about["sources"][clip]
    tab.mouse.click(*places[clip])
    until(tab, "document.getElementById('audio').currentTime > 0.2")
    assert picked(tab) == about["sources"][clip]
    seconds = tab.evaluate("document.getElementById('audio').duration")
    assert seconds == pytest.approx(float(tab.locator("#facts dd").last.text_content()), abs=0.01)


def test_neighbours_are_those_of_numpy(tab: Any, about: dict[str, Any], page: Path, kept_rows: Any) -> None:
    tab.focus("#marks")
    tab.keyboard.press("ArrowRight")
    clip = about["sources"].index(picked(tab))
    tab.wait_for_selector("#neighbours button")
    unit = kept_rows / np.linalg.norm(kept_rows, axis=1, keepdims=True)
    cosines = unit @ unit[clip]
    cosines[clip] = -np.inf
    expected = np.argsort(-cosines, kind="stable")[:10]
    rows = tab.locator("#neighbours button").all()
    assert [row.get_attribute("title") for row in rows] == [about["sources"][other] for other in expected]
    assert [float(row.locator(".many").text_content()) for row in rows] == pytest.approx(cosines[expected], abs=6e-4)
    rows[2].click()
    assert picked(tab) == about["sources"][expected[2]]


def test_names_are_shown_as_they_are(tab: Any, named: ShardSet, about: dict[str, Any]) -> None:
    shown = tab.locator("#legend li .what").all_text_contents()
    assert shown == [*sorted(named.manifest.label_names), "(none)"] and len(shown) == 3
    assert tab.locator("script").count() == 1 and tab.locator("#legend img").count() == 0
    assert tab.title().startswith("named")


def test_search_legend_and_clusters_filter(tab: Any, named: ShardSet, about: dict[str, Any]) -> None:
    def left() -> str:
        return str(tab.locator("#chosen-text").text_content())

    tab.fill("#search", "日本語 test-")
    wanted = [path for path in about["sources"] if "test-" in path and "low" in path]
    until(tab, f"document.getElementById('chosen-text').textContent === '{len(wanted)} of 96 clips shown'")
    tab.fill("#search", "nothing is called so")
    tab.wait_for_selector("#nothing:not([hidden])")
    tab.click("#nothing-clear")
    assert tab.locator("#chosen").is_hidden() and tab.input_value("#search") == ""
    tab.click("#legend li:last-child button")
    assert left() == "32 of 96 clips shown"
    tab.click("#tab-clusters")
    entry = tab.locator("#clusters .only").first
    tab.keyboard.press("Escape")
    entry.click()
    assert left() == f"{about['clusters'][0]['clips']} of 96 clips shown"
    first = about["clusters"][0]
    assert f"{round(100 * first['purity'])} % pure" in entry.text_content()
    tab.locator("#clusters .central button").first.click()
    until(tab, "document.getElementById('audio').currentTime > 0.1")
    assert picked(tab) == about["sources"][first["central"][0]]


@pytest.mark.parametrize("tool", ["b", "l"])
def test_a_selection_is_saved_as_csv(tab: Any, about: dict[str, Any], tool: str, tmp_path: Path) -> None:
    places = on_screen(tab, about["map"])
    box = tab.locator("#marks").bounding_box()
    middle = float(np.median(places[:, 0]))
    inside = np.flatnonzero(np.abs(places[:, 0] - middle) > 6)  # not under the edge
    right, top, bottom = box["x"] + box["width"] - 2, box["y"] + 60, box["y"] + box["height"] - 2
    tab.focus("#marks")
    tab.keyboard.press(tool)
    corners = (
        [(middle, top), (right, bottom)]
        if tool == "b"
        else [(middle, top), (right, top), (right, bottom), (middle, bottom)]
    )
    tab.mouse.move(*corners[0])
    tab.mouse.down()
    for corner in corners[1:]:
        tab.mouse.move(*corner, steps=4)
    tab.mouse.up()
    with tab.expect_download() as download:
        tab.click("#export")
    download.value.save_as(tmp_path / "some.csv")
    with (tmp_path / "some.csv").open(encoding="utf-8", newline="") as file:
        rows = {int(row["clip_id"]): row for row in csv.DictReader(file)}
    sure = {int(clip) for clip in inside if places[clip, 0] > middle}
    assert sure <= set(rows) and all(places[clip, 0] > middle - 6 for clip in rows)
    names = {column["name"]: column for column in about["columns"]}
    for clip, row in rows.items():
        code = names["label"]["values"][clip]
        assert row["source"] == about["sources"][clip]
        assert row["label"] == ("" if code < 0 else names["label"]["names"][code])


def test_it_is_used_by_keyboard_alone(tab: Any, about: dict[str, Any]) -> None:
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "marks":
            break
    tab.keyboard.press("ArrowUp")
    first = about["sources"].index(picked(tab))
    tab.keyboard.press("ArrowRight")
    second = about["sources"].index(picked(tab))
    assert about["map"][second, 0] > about["map"][first, 0]
    tab.keyboard.press(" ")
    until(tab, "document.getElementById('audio').currentTime > 0.1")
    tab.keyboard.press(" ")
    assert tab.evaluate("document.getElementById('audio').paused")
    tab.keyboard.press("/")
    tab.keyboard.type("valid")
    until(tab, "document.getElementById('chosen-text').textContent === '18 of 96 clips shown'")
    tab.keyboard.press("Escape")
    assert tab.locator("#chosen").is_hidden()
    assert tab.evaluate("document.getElementById('said').textContent").endswith(about["sources"][second])


@pytest.mark.parametrize("tab", [(360, 700)], indirect=True)
def test_a_narrow_screen_shows_all_without_scrolling_sideways(tab: Any, about: dict[str, Any]) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    places = on_screen(tab, about["map"])
    tab.touchscreen.tap(*places[int(places[:, 0].argmax())])
    until(tab, "document.getElementById('audio').currentTime > 0.1")
    tab.locator("#neighbours li").last.scroll_into_view_if_needed()
    assert tab.locator("#neighbours li").count() == 10 and tab.evaluate("document.documentElement.scrollWidth") == 360


def test_colours_follow_the_column_and_the_theme(tab: Any, about: dict[str, Any]) -> None:
    ground = "[...document.getElementById('points').getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)"
    assert min(tab.evaluate(ground)) > 240
    tab.emulate_media(color_scheme="dark")
    until(tab, f"Math.max(...{ground}) < 40")
    tab.select_option("#colour", label="seconds")
    ends = [float(text) for text in tab.locator(".ends span").all_text_contents()]
    assert 1.0 <= ends[0] < ends[1] <= 1.3 and tab.locator("#legend li").count() == 0
