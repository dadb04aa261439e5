"""The import direction of the wings, and what importing the package may load."""

import ast
import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "unfused_fast"
# From the bottom to the top: imports go to lines above only, or stay within a wing.
LAYERS = [
    {"errors", "float32", "checkout"},
    {"console", "endings", "optional", "launch", "json_files", "memory", "strict_state", "kernels"},
    {"hub"},
    {"config"},
    {"shards"},
    {"mel"},
    {"distributed"},
    {"data"},
    {"models"},
    {"clustering"},
    {"methods"},
    {"training"},
    {"stages"},
    {"evaluation"},
    {"embedding"},
    {"explore", "hear"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
SHARDS = [
    {"callbacks"},
    {"sources"},
    {"audio"},
    {"sets"},
    {"packing"},
    {"datasets"},
    {"check"},
    {"demo"},
]
"""Of `shards/`, likewise; these are imported by file."""
WINGS = {name for layer in LAYERS for name in layer if (PACKAGE / name).is_dir()} - {"kernels", "shards"}
GPU_LIBRARIES = {"nvidia", "cupy", "cuml", "faiss", "triton"}
ONE_FILE_EACH = {
    "nvidia": {"data/dali.py"},
    "triton": {"kernels/assign.py", "kernels/centroids.py", "kernels/views.py"},
    "cupy": {"clustering/backends.py"},
    "cuml": {"clustering/backends.py"},
    "faiss": {"clustering/backends.py"},
}


@cache
def modules() -> dict[str, list[Path]]:
    """A wing, or a module at the root -> its files."""
    found: dict[str, list[Path]] = {}
    walked = (Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names)
    for path in sorted(path for path in walked if path.suffix == ".py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "__init__":
            found.setdefault(parts[0], []).append(path)
    return found


@cache
def imported(path: Path) -> list[tuple[str, str, bool]]:
    """(module, name or "", whether inside a function or a TYPE_CHECKING block) of every import."""
    tree = ast.parse(path.read_text())
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(inner) for node in [*guarded, *functions] for inner in ast.walk(node)}
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, "", id(node) in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(node.module, alias.name, id(node) in late) for alias in node.names]
    return names


def test_the_package_links_to_the_top_level() -> None:
    for name in ("cli.py", "kernels", "shards"):
        assert (PACKAGE / name).is_symlink() and (PACKAGE / name).readlink() == Path("..") / name


def test_every_wing_has_a_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


def test_nothing_imports_upward_or_past_the_door_of_a_wing() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for wing, paths in modules().items():
        for path in paths:
            for module, name, _ in imported(path):
                parts = f"{module}.{name}".split(".")
                if parts[0] != "unfused_fast" or parts[1] not in level or parts[1] == wing:
                    continue
                assert level[parts[1]] < level[wing], f"{path} imports {module}, which lies above or beside it"
                if parts[1] in WINGS - {"commands"}:
                    assert module == f"unfused_fast.{parts[1]}", f"{path} imports {module}; import from its wing"


def test_nothing_in_shards_imports_upward() -> None:
    level = {name: number for number, layer in enumerate(SHARDS) for name in layer}
    folders = {path.relative_to(PACKAGE / "shards").with_suffix("").parts[0] for path in modules()["shards"]}
    assert folders - {"__init__"} == set(level)
    for path in modules()["shards"]:
        own = path.relative_to(PACKAGE / "shards").with_suffix("").parts[0]
        for module, name, _ in imported(path):
            parts = f"{module}.{name}".split(".")
            if parts[:2] == ["unfused_fast", "shards"] and parts[2] != own:
                assert level[parts[2]] < level[own], f"{path} imports {module}, which lies above or beside it"


def test_modules_of_a_wing_import_each_other_without_a_circle() -> None:
    within = {
        str(path.relative_to(PACKAGE).with_suffix("")): {
            f"{module}.{name}".removeprefix("unfused_fast.").replace(".", "/")
            for module, name, late in imported(path)
            if module.startswith("unfused_fast.") and not late
        }
        for paths in modules().values()
        for path in paths
    }
    graph = {
        module: {other for name in names for other in (name, name.rpartition("/")[0]) if other in within} - {module}
        for module, names in within.items()
    }
    while graph:
        leaves = [module for module, names in graph.items() if not names & set(graph)]
        assert leaves, f"these import each other: {sorted(graph)}"
        for module in leaves:
            del graph[module]


def test_each_gpu_library_is_imported_in_one_place_and_late() -> None:
    for paths in modules().values():
        for path in paths:
            for module, _, late in imported(path):
                library = module.split(".")[0]
                if library in GPU_LIBRARIES:
                    assert str(path.relative_to(PACKAGE)) in ONE_FILE_EACH[library], f"{path} imports {library}"
                    assert late, f"{path} imports {library} when it is itself imported"


def test_kernels_and_shards_know_only_their_own() -> None:
    for path in modules()["kernels"]:
        outside = {module.split(".")[0] for module, _, _ in imported(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "triton", "cupy", "unfused_fast"}, path
    for path in modules()["shards"]:
        assert "torch" not in {module.split(".")[0] for module, _, _ in imported(path)}


def test_importing_and_help_load_no_heavy_library() -> None:
    code = (
        "import sys; import unfused_fast, unfused_fast.cli; sys.argv = ['unfused-fast', '--help'];\n"
        "try: unfused_fast.cli.main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({name.split('.')[0] for name in sys.modules} & "
        "{'nvidia', 'cupy', 'cuml', 'faiss', 'triton', 'torch', 'numpy', 'pyarrow', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LOADED []")


def test_packing_does_not_wait_for_torch() -> None:
    code = "import sys, unfused_fast.mel, unfused_fast.shards.packing.pack; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_picture_of_the_wings_is_that_of_their_imports() -> None:
    """Drawn anew by python docs/draw_wings.py."""
    docs = PACKAGE.parent / "docs"
    drawn = runpy.run_path(str(docs / "draw_wings.py"))["picture"]()
    assert (docs / "wings.svg").read_text() == drawn


def test_no_file_has_outgrown_its_room() -> None:
    long = {
        path.name: lines
        for paths in modules().values()
        for path in paths
        if (lines := len(path.read_text().splitlines())) > 330
    }
    assert not long
