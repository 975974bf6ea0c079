"""The rooms of the house: what may import what, and what --help must not load."""

import subprocess
import sys
import time
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent.parent
LAYERS = (
    ("studio.ui", "studio.__main__"),
    ("studio.web",),
    ("studio.api",),
    ("studio.services",),
    ("studio.evaluation",),
    ("studio.jobs", "studio.chat", "studio.keeping"),
    ("studio.datasets", "studio.training", "studio.adapters"),
    ("studio.bases", "studio.lora"),
)
HOLDERS = {
    "gradio": ("studio.ui", "app"),
    "sqlalchemy": ("storage",),
    "alembic": ("storage",),
    "transformers": ("studio.bases", "studio.chat", "studio.training"),
    "bitsandbytes": ("studio.bases", "studio.lora", "studio.training"),
    "tensorboardX": ("studio.training",),
    "httpx": ("studio.jobs", "studio.chat"),
    "prometheus_client": ("studio.web",),
    "pythonjsonlogger": ("studio.logs",),
    "spaces": ("studio.chat",),
    "fsspec": ("studio.jobs",),
    "rensa": ("studio.datasets",),
    "py3langid": ("studio.datasets",),
    "phonenumbers": ("studio.datasets",),
    "rouge_score": ("studio.evaluation",),
    "sacrebleu": ("studio.evaluation",),
    "lm_eval": ("studio.evaluation",),
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("studio", "storage", include_external_packages=True, exclude_type_checking_imports=True)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_imports_run_one_way(graph: grimp.ImportGraph) -> None:
    level = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{importer} imports {imported}"
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if room(importer) in level and room(imported) in level and level[room(importer)] > level[room(imported)]
    ]
    assert len(level) >= 12 and not wrong


def test_storage_imports_nothing_from_studio(graph: grimp.ImportGraph) -> None:
    inside = [m for m in graph.modules if m.split(".")[0] == "storage"]
    assert len(inside) > 5
    assert not [m for m in inside for i in graph.find_modules_directly_imported_by(m) if i.split(".")[0] == "studio"]


def test_lora_knows_nothing_of_the_studio(graph: grimp.ImportGraph) -> None:
    inside = [m for m in graph.modules if m.startswith("studio.lora")]
    imports = {i for m in inside for i in graph.find_modules_directly_imported_by(m)}
    assert not [i for i in imports if i.startswith(("studio.", "storage")) and not i.startswith("studio.lora")]


@pytest.mark.parametrize("package", HOLDERS)
def test_a_package_is_imported_only_where_it_lives(graph: grimp.ImportGraph, package: str) -> None:
    importers = graph.find_modules_that_directly_import(package) if package in graph.modules else set()
    assert importers, f"nothing imports {package}; take it out of the requirements"
    assert not [m for m in importers if not m.startswith(HOLDERS[package])]


def test_the_environment_is_read_in_settings_alone() -> None:
    readers = [p for p in (ROOT / "studio").rglob("*.py") if "os.environ" in p.read_text() or "getenv" in p.read_text()]
    assert [p.name for p in readers] == ["settings.py"]


@pytest.mark.parametrize("module", ["studio.ui.app", "storage.jobs", "studio.settings", "studio.__main__", "studio.keeping.keeper"])
def test_torch_is_not_loaded_at_import(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_answers_without_the_heavy_packages() -> None:
    code = "import sys, studio.__main__; print(sorted({'torch', 'gradio', 'sqlalchemy', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "studio", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"--help took {time.perf_counter() - started:.2f} s")
    assert "train" in result.stdout


def test_spaces_is_no_package() -> None:
    # An __init__.py there would hide the PyPI package `spaces` that ZeroGPU needs.
    assert (ROOT / "spaces").is_dir() and not (ROOT / "spaces" / "__init__.py").exists()
