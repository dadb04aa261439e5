"""docs/wings.svg: which folder of the code imports from which, as a matrix, from the imports themselves.

python docs/draw_wings.py        after a change of imports; tests/test_layering.py compares
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "wings.svg"
WINGS = {
    "config": "every number, with unit and source",
    "kernels": "Triton: nearest centroids, their sums, views",
    "shards": "recordings -> shard sets",
    "distributed": "processes that train as one",
    "data": "shard sets -> batches of log-mels and views",
    "models": "log-mels -> embeddings",
    "clustering": "rows -> assignments; the memory bank",
    "methods": "ways to learn without labels",
    "training": "a stage -> epochs, saves, a run directory",
    "stages": "pretrain, distill, linear, finetune, all",
    "evaluation": "encoders -> tables with intervals",
    "embedding": "a trained encoder for other recordings",
    "explore": "a set to see and hear; what sounds alike",
    "commands": "flags -> calls; what is printed",
}
CELL, LEFT, TOP = 34, 425, 110


def imports() -> Counter[tuple[str, str]]:
    """(wing, wing that it imports from) -> in how many files."""
    found = Counter[tuple[str, str]]()
    for wing in WINGS:
        folder = ROOT / wing if wing in ("kernels", "shards") else ROOT / "unfused_fast" / wing
        for path in sorted(folder.rglob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text()))
            modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
            others = {module.split(".")[1] for module in modules if module.startswith("unfused_fast.")}
            found.update((wing, other) for other in others & set(WINGS) - {wing})
    return found


def picture() -> str:
    """The matrix as SVG: a row imports from the columns that have a number, the files that do."""
    counts, names = imports(), list(WINGS)
    width, height = LEFT + CELL * len(names) + 60, TOP + CELL * len(names) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
        ' font-size="14">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<text x="10" y="24" fill="#555">A row imports from a column: number of files. Data flows downwards.</text>',
    ]
    for place, name in enumerate(names):
        y, x = TOP + CELL * place, LEFT + CELL * place
        parts.append(f'<text x="10" y="{y + 22}" font-weight="bold">{name}</text>')
        parts.append(f'<text x="105" y="{y + 22}" fill="#555">{escape(WINGS[name])}</text>')
        parts.append(f'<text transform="translate({x + 22} {TOP - 8}) rotate(-60)">{name}</text>')
        for column, other in enumerate(names):
            count = counts[name, other]
            fill = "#ddd" if column == place else "#f6f6f6" if not count else "#9ecae1" if column < place else "#d62728"
            parts.append(
                f'<rect x="{LEFT + CELL * column}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}"/>'
            )
            if count:
                parts.append(f'<text x="{LEFT + CELL * column + 16}" y="{y + 21}" text-anchor="middle">{count}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
