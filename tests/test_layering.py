"""The import direction of the architecture, and what importing the package may load."""

import ast
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "unfused_fast"
# From the bottom to the top: a module imports only from lines above its own, or from its own line where two stand on
# one.
LAYERS = [
    {"float32"},
    {"errors", "names", "kernels", "encoder", "console", "memory", "metrics", "neighbours", "shares"},
    {"optional", "profiling", "reading", "expected", "save_every", "background", "launch", "beats"},
    {"ranks"},
    {"shared_layers", "gradients"},
    {"config_audio"},
    {"config_eval", "config_distill", "tasks"},
    {"config", "shards"},
    {"mel", "config_checks", "measuring"},
    {"settings", "randomness", "audio", "efficientnet", "plots", "rows", "kmeans_backends"},
    {"set_statistics", "normalisation", "dali_operators"},
    {"order", "augment", "kmeans_start", "clip_pieces", "waveforms", "losses", "collapse"},
    {"reading_errors"},
    {"damaged_clips"},
    {"skipped_clips"},
    {"batches"},
    {"progress"},
    {"spec_augment", "windows"},
    {"pipeline", "model"},
    {"encoder_cost"},
    {"log_mel_cache", "resident"},
    {"log_mel_pass"},
    {"placement"},
    {"bank_manifest"},
    {"bank_read", "bank_write"},
    {"bank", "clustering", "pic", "optim", "checkpoint"},
    {"training", "partitions", "run_lock", "run_differences", "run_description"},
    {"run", "assignment", "model_folder"},
    {"run_together"},
    {"saves", "features", "prediction"},
    {"further_heads"},
    {"loop"},
    {"embedder"},
    {"hear", "transformer", "export", "foreign"},
    {"embed_reading", "embed_store"},
    {"embed_formats"},
    {"embed"},
    {"pretraining"},
    {"pretrain"},
    {"pseudo_labels"},
    {"distill"},
    {"hold_out"},
    {"labelled"},
    {"protocol"},
    {"linear"},
    {
        "report",
        "doctor",
        "everything",
        "peek",
        "bench",
        "bank_export",
        "clusters",
        "plan_bytes",
        "synthetic",
        "run_pool",
    },
    {"plan_rates"},
    {"plan"},
    {"demo", "ablation_report"},
    {"ablation"},
    {"clip_scores"},
    {"evaluation"},
    {"judged"},
    {"evaluation_table", "predictions", "finetune"},
    {"evaluate", "lape_data", "lape_report"},
    {"lape"},
    {"launcher"},
    {"ray_launcher", "exits"},
    {"terminal"},
    {"embed_sources"},
    {
        "train_commands",
        "shard_commands",
        "set_commands",
        "bench_commands",
        "bank_commands",
        "clusters_commands",
        "export_commands",
        "embed_commands",
        "plan_commands",
        "ablate_commands",
    },
    {"evaluate_commands"},
    {"lape_commands"},
    {"cli"},
    {"__main__"},
]
GPU_LIBRARIES = {"nvidia", "cupy", "cuml", "faiss", "triton"}
ONE_FILE_EACH = {
    "nvidia": {"pipeline"},
    "triton": {"kernels"},
    "cupy": set(),
    "cuml": {"kmeans_backends"},
    "faiss": {"kmeans_backends"},
}


def modules() -> dict[str, list[Path]]:
    """First part of a module's name below unfused_fast -> its files."""
    found: dict[str, list[Path]] = {}
    walked = (Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names)
    for path in sorted(path for path in walked if path.suffix == ".py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "__init__":
            found.setdefault(parts[0], []).append(path)
    return found


def imported(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, whether inside a function or a TYPE_CHECKING block) of every import."""
    tree = ast.parse(path.read_text())
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(inner) for node in [*guarded, *functions] for inner in ast.walk(node)}
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, id(node) in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(f"{node.module}.{alias.name}", id(node) in late) for alias in node.names]
    return names


def test_the_package_links_to_the_top_level() -> None:
    for name in ("cli.py", "kernels", "shards"):
        assert (PACKAGE / name).is_symlink() and (PACKAGE / name).readlink() == Path("..") / name


def test_every_module_has_a_layer() -> None:
    known = set().union(*LAYERS)
    assert set(modules()) == known


def test_nothing_imports_upward() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for module, paths in modules().items():
        for path in paths:
            for name, _ in imported(path):
                parts = name.split(".")
                if parts[0] != "unfused_fast" or len(parts) < 2 or parts[1] not in level or parts[1] == module:
                    continue
                # terminal.py holds what commands share, and looks down into the stages only inside functions
                assert level[parts[1]] < level[module], f"{path.name} imports {name}, which lies above or beside it"


def test_each_gpu_library_is_imported_in_one_place_and_late() -> None:
    for module, paths in modules().items():
        for path in paths:
            for name, late in imported(path):
                library = name.split(".")[0]
                if library in GPU_LIBRARIES:
                    assert module in ONE_FILE_EACH[library], f"{path} imports {library}"
                    assert late, f"{path} imports {library} when it is itself imported"


def test_kernels_and_shards_know_only_their_own() -> None:
    for path in modules()["kernels"]:
        outside = {name.split(".")[0] for name, _ in imported(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "triton", "cupy", "unfused_fast"}, path
    for path in modules()["shards"]:
        assert "torch" not in {name.split(".")[0] for name, _ in imported(path)}


def test_importing_and_help_load_no_heavy_library() -> None:
    code = (
        "import sys; import unfused_fast, unfused_fast.cli; sys.argv = ['unfused-fast', '--help'];\n"
        "try: unfused_fast.cli.main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({name.split('.')[0] for name in sys.modules} & "
        "{'nvidia', 'cupy', 'cuml', 'faiss', 'triton', 'torch', 'numpy', 'pyarrow', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LOADED []")


def test_no_file_has_outgrown_its_room() -> None:
    long = {
        path.name: lines
        for paths in modules().values()
        for path in paths
        if (lines := len(path.read_text().splitlines())) > 330
    }
    assert not long
