"""Pictures of results: confusion matrices and training curves, as PNG files."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unfused_fast.console import console
from unfused_fast.errors import UserError, cause
from unfused_fast.optional import importing
from unfused_fast.shards.sets.shard_files import replace_file

LINE_STYLES = "--", ":", "-.", (0, (1, 4))
"""Of level lines, in turns."""


def draw(path: Path, plot: Callable[..., None], *content: Any) -> None:
    """`plot(path, *content)` of finished work, which is written before: a picture that cannot be drawn is reported."""
    try:
        plot(path, *content)
    except (OSError, UserError) as error:
        console.print(f"{path}: not drawn ({cause(error)})", style="yellow")


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    with importing("matplotlib", "Matplotlib", "a picture", "pip install matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path, dpi: int) -> None:
    """Writes a figure. Characters missing in the default font are drawn in other fonts of this machine; those in no
    font are drawn as boxes, which is reported.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    fonts, lacking = _fonts_for({char for text in texts for char in text.get_text() if not char.isspace()})
    for text in texts if fonts else ():
        text.set_fontfamily(["sans-serif", *fonts])
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(drawn, format=path.suffix[1:] or "png", dpi=dpi)
    replace_file(path, drawn.getvalue())  # a half-written picture could pass for a complete one
    if lacking:
        console.print(
            f"{path}: no font here has {len(lacking)} of the characters ({''.join(sorted(lacking)[:8])}), which are "
            "drawn as boxes; install one that has them, such as Noto Sans CJK",
            style="yellow",
        )


def _fonts_for(chars: set[str]) -> tuple[list[str], set[str]]:
    """Font families with the characters that the default font lacks, and the characters in no font."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    usual = get_font(findfont(FontProperties())).get_charmap()
    found, lacking = list[str](), {char for char in chars if ord(char) not in usual}
    for entry in fontManager.ttflist if lacking else ():
        try:
            covered = {char for char in lacking if ord(char) in get_font(entry.fname).get_charmap()}
        except (OSError, RuntimeError):  # a file that FreeType does not take
            continue
        if covered and not entry.name.startswith("Last Resort"):
            found.append(entry.name)
            lacking = lacking - covered
    return found, lacking


def plot_confusions(path: Path, matrices: Sequence[tuple[str, Sequence[Sequence[int]], Sequence[str]]]) -> None:
    """Confusion matrices side by side: (title, counts (C, C), class names); colour is the share of the class."""
    size = 2.2 + 0.28 * min(40, max(len(names) for _, _, names in matrices))
    figure, axes = _figure(len(matrices), 1, size, size)
    for cell, (title, confusion, names) in zip(axes[0], matrices, strict=True):
        shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
        cell.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        cell.set_title(title, fontsize=9, parse_math=False)
        cell.set(xlabel="predicted", ylabel="class")
        turn = 90 if len(names) > 6 else 0
        if len(names) <= 40:
            cell.set_xticks(range(len(names)), names, rotation=turn, fontsize=7, parse_math=False)
            cell.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
        for row, counts in enumerate(confusion if len(names) <= 15 else ()):
            for column, count in enumerate(counts):
                colour = "white" if shares[row][column] > 0.5 else "black"
                cell.text(column, row, str(count or ""), ha="center", va="center", fontsize=7, color=colour)
    _save(figure, path, 130)


def plot_curves(
    path: Path, runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], quantities: Sequence[tuple[str, str]]
) -> None:
    """Log rows of several runs, one panel a quantity: runs (label, rows of log.jsonl), quantities (key, axis label)."""
    figure, axes = _figure(len(quantities), 1, 4.2, 3.2)
    for cell, (quantity, label) in zip(axes[0], quantities, strict=True):
        for name, rows in runs:
            points = [(row["epoch"], row[quantity]) for row in rows if row.get(quantity) is not None]
            if points:
                cell.plot(*zip(*points, strict=True), label=name, linewidth=1.3)
        cell.set(xlabel="epoch", ylabel=label)
        cell.grid(alpha=0.3)
        if len(runs) > 1 and cell.lines:
            cell.legend(fontsize=7)
    _save(figure, path, 130)


def plot_errors(
    path: Path, names: Sequence[str], points: Mapping[str, Sequence[tuple[float, float] | None]], label: str
) -> None:
    """One row per name, from the top: a dot and an error bar of one error to each side for every (value, error)."""
    figure, ((axes,),) = _figure(1, 1, 6.4, 0.9 + 0.34 * len(names))
    step = 0.5 / max(1, len(points))
    for number, (quantity, found) in enumerate(points.items()):
        there = [(row, *point) for row, point in enumerate(found) if point is not None]
        if there:
            rows, values, errors = zip(*there, strict=True)
            places = [row + step * (number - (len(points) - 1) / 2) for row in rows]
            axes.errorbar(values, places, xerr=errors, fmt="o", markersize=4, capsize=2, linewidth=1.2, label=quantity)
    axes.set_yticks(range(len(names)), [_shortened(name, 60) for name in names], fontsize=8, parse_math=False)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=label)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path, 130)


def plot_scores(
    path: Path,
    points: Mapping[str, tuple[tuple[float, float], tuple[float, float]]],
    lines: Mapping[str, tuple[float, float]],
    labels: tuple[str, str],
    title: str,
) -> None:
    """A point for each ((x, error), (y, error)) with bars of one error, its name beside it; a level line for each
    (y, error), in the legend. Where names would cover each other, the points are in the legend too, from the highest.
    """
    figure, ((axes,),) = _figure(1, 1, 8.2, 4.6)
    ordered = sorted(points.items(), key=lambda point: -point[1][1][0])
    for (name, (across, up)), marker in zip(ordered, itertools.cycle("os^Dv")):
        bars = {"fmt": marker, "markersize": 5, "capsize": 2, "linewidth": 1.2}
        axes.errorbar(across[0], up[0], up[1], across[1], label=_shortened(name, 40), **bars)
    for (name, (level, error)), style in zip(lines.items(), itertools.cycle(LINE_STYLES)):
        axes.axhline(level, color="black", linewidth=1, linestyle=style, label=name)
        axes.axhspan(level - error, level + error, color="black", alpha=0.08, linewidth=0)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    beside = {"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    handles, names = axes.get_legend_handles_labels()
    axes.legend([handle for handle, name in zip(handles, names, strict=True) if name in lines], [*lines], **beside)
    if not _named_beside(figure, axes, points, lines):
        axes.legend(**beside)
    _save(figure, path, 130)


def _named_beside(
    figure: Any,
    axes: Any,
    points: Mapping[str, tuple[tuple[float, float], tuple[float, float]]],
    lines: Mapping[str, tuple[float, float]],
) -> bool:
    """Writes the name of each point beside it; False, and nothing is written, where one has no free place."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # before it nothing has a place
    taken = []
    for (x, across), (y, up) in points.values():
        for dx, dy in ((across, 0.0), (0.0, up)):
            corners = axes.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
            taken.append(Bbox(corners).padded(4))
    for level, _ in lines.values():
        height = axes.transData.transform((0, level))[1]
        taken.append(Bbox.from_extents(axes.bbox.x0, height - 1, axes.bbox.x1, height + 1))
    written = []
    for name, ((x, _), (y, _)) in points.items():
        for right, up in itertools.product((1, -1), (0, 1, -1)):
            text = axes.annotate(
                _shortened(name, 40),
                (x, y),
                (7 * right, 7 * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va=("center", "bottom", "top")[up],
                fontsize=8,
                parse_math=False,
                in_layout=False,
            )
            box = text.get_window_extent()
            inside = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            )
            if inside and not any(box.overlaps(other) for other in taken):
                written.append(text)
                taken.append(box)
                break
            text.remove()
        else:
            for text in written:
                text.remove()
            return False
    return True


def plot_cluster_sizes(path: Path, counts: Sequence[int], title: str) -> None:
    """Sizes of clusters (K), largest first, empty ones last, with a line where all would be equal."""
    sizes, even = sorted(counts, reverse=True), sum(counts) / len(counts)
    figure, ((axes,),) = _figure(1, 1, 6.4, 3.6)
    steps = range(len(sizes) + 1), [*sizes, sizes[-1]]
    axes.fill_between(*steps, step="post", color="tab:blue", alpha=0.75, linewidth=0)
    axes.axhline(even, color="black", linewidth=1, linestyle="--", label=f"uniform: {even:.4g}")
    axes.set(xlim=(0, len(sizes)), ylim=(0, 1.08 * max(sizes[0], even)), xlabel="cluster, by size", ylabel="clips")
    empty = sizes.count(0)
    words = f"{title}: {sum(sizes):,} clips in {len(sizes) - empty:,} clusters"
    axes.set_title(words + (f", {empty:,} empty" if empty else ""), fontsize=10, parse_math=False)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path, 120)


def plot_log_mels(path: Path, classes: Sequence[tuple[str, Sequence[tuple[str, float, Any]]]], title: str) -> None:
    """A sheet: a row a class (label, clips), a clip being (name, seconds, log-mel (F, T)); low frequencies below."""
    columns = max(len(clips) for _, clips in classes)
    figure, axes = _figure(columns, len(classes), 3.2, 1.6)
    # of all, so that silence is dark
    top = max(float(picture.max()) for _, clips in classes for _, _, picture in clips)
    for row, (label, clips) in enumerate(classes):
        axes[row][0].set_ylabel(_shortened(label, 22), fontsize=9, parse_math=False)
        for column, cell in enumerate(axes[row]):
            if column >= len(clips):
                cell.set_visible(False)
                continue
            name, seconds, picture = clips[column]
            # 80 dB below the loudest bin: ln(10^8)
            drawn = {"cmap": "magma", "vmin": top - 18.4, "vmax": top, "extent": (0, seconds, 0, 1)}
            cell.imshow(picture, origin="lower", aspect="auto", **drawn)
            cell.set_title(_shortened(name, 40), fontsize=7, loc="left", parse_math=False)
            cell.set_yticks([])
            cell.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel("seconds; upwards: mel bins", fontsize=8)
    _save(figure, path, 110)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-length // 2 :]}"
