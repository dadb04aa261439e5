"""Pictures of results: confusion matrices and training curves, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_confusion(axes: Any, confusion: Sequence[Sequence[int]], names: Sequence[str], title: str) -> None:
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= 15:
        for row, counts in enumerate(confusion):
            for column, count in enumerate(counts):
                if count:
                    axes.text(
                        column,
                        row,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if shares[row][column] > 0.5 else "black",
                    )


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str], title: str) -> None:
    """One confusion matrix (C, C) of counts; colour is the share of the class."""
    plot_confusions(path, [(title, confusion, names)])


def plot_confusions(path: Path, matrices: Sequence[tuple[str, Sequence[Sequence[int]], Sequence[str]]]) -> None:
    """Several confusion matrices side by side: (title, counts, class names)."""
    size = 2.2 + 0.28 * min(40, max(len(names) for _, _, names in matrices))
    figure, axes = _figure(len(matrices), 1, size, size)
    for cell, (title, confusion, names) in zip(axes[0], matrices, strict=True):
        _draw_confusion(cell, confusion, names, title)
    figure.savefig(path, dpi=130)


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
        cell.set_xlabel("epoch")
        cell.set_ylabel(label)
        cell.grid(alpha=0.3)
        if len(runs) > 1:
            cell.legend(fontsize=7)
    figure.savefig(path, dpi=130)
