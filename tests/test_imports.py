"""What importing costs and may touch, and which room may import which."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medvllm"
HEAVY = {"torch", "transformers", "huggingface_hub", "tokenizers", "numpy", "sqlalchemy", "ray", "fastapi", "httpx2"}

# From the bottom up: a room may import its own layer's siblings only where the design says so, and layers below.
LAYERS = (
    ("errors",),
    ("near_names",),
    ("forking", "inherited", "lazy", "quantities", "settings_files", "heads"),
    ("settings", "files", "progress", "author", "spelling"),
    ("destination", "turns"),
    ("processes",),
    ("classes", "words"),
    ("facts",),
    ("fact_values",),
    ("fact_filters",),
    ("names", "metadata"),
    ("options", "local_files"),
    ("receipt",),
    ("catalog",),
    ("sources",),
    ("loading",),
    ("model_cache",),
    ("lease",),
    ("approval", "transfer"),
    ("model_registry",),
    ("engine",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def _modules_after(code: str) -> set[str]:
    listing = f"{code}\nimport sys; sys.stderr.write('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return {line.partition(".")[0] for line in run.stderr.splitlines()}


@pytest.mark.parametrize(
    "code",
    [
        "from medvllm.engine.model_runner import registry, ModelType; registry.list_models(ModelType.CLINICAL)",
        "from medvllm.engine.model_runner import registry; registry.get_metadata('biobert-base-cased-v1.2');"
        "registry.list_models(task='embed', tags=['bert'], match='*')",
        "from medvllm.engine.model_runner import registry; registry.register('m', 'generic', model_class='a.b:C')",
        "from medvllm.cli.app import app; app(['list'], standalone_mode=False)",
        "from medvllm.cli.app import app; app(['list', '--type', 'clinical', '--json'], standalone_mode=False)",
        "from medvllm.cli.app import app; app(['show', 'biobert-base-cased-v1.2'], standalone_mode=False)",
        "from medvllm.cli.app import app; app(['--help'], standalone_mode=False)",
        "from medvllm.cli.completion import model_names; assert [*model_names('b')]",
    ],
)
def test_looking_imports_nothing_heavy(code: str) -> None:
    """Import, list, filter, register, show and help, in processes of their own."""
    assert _modules_after(code) & HEAVY == set()


WAYS = [
    "from medvllm.engine.model_runner import registry",
    "import medvllm.engine.model_runner as mr; registry = mr.registry",
    "import medvllm.model_registry",
    "import medvllm.engine.model_runner.registry",
    "from medvllm.engine.model_runner.registry import registry, ModelRegistry, ModelType, ModelMetadata",
    "import importlib; importlib.import_module('medvllm.engine.model_runner.registry')",
    "import medvllm.engine.model_runner.runner",
    "from medvllm.engine import model_runner",
    "from medvllm.model_registry import registry",
    "from medvllm import registry, ModelRunner, ModelRegistry, ModelMetadata, ModelType",
    "import medvllm; registry = medvllm.registry",
]


@pytest.mark.parametrize("first", WAYS)
def test_the_import_path_gives_the_object_in_every_order(first: str) -> None:
    """Whatever was imported before, also as a module of the name that the framework's older code uses."""
    orders = "\n".join(["import sys", first, *itertools.chain.from_iterable((way, _CHECK) for way in WAYS)])
    run = subprocess.run([sys.executable, "-c", orders], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


_CHECK = """
from medvllm.engine.model_runner import registry, ModelRegistry
import medvllm.engine.model_runner as package
import medvllm.model_registry as home
import medvllm
assert medvllm.registry is registry and medvllm.ModelRegistry is ModelRegistry
assert type(registry) is ModelRegistry and registry is package.registry is home.registry
"""


def _imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "medvllm" and len(parts) > 1 and parts[1] in RANK else None


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    """Every import, also inside functions, goes to the same room or down; residency and sources know no loading."""
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"{own} has no place in the design"
    for module in _imports(ast.parse(file.read_text())):
        room = _room(module)
        if room is not None and room != own:
            assert RANK[room] < RANK[own], f"{file.name} imports {module}"
            assert (own, room) not in {("model_cache", "loading"), ("model_cache", "sources"), ("sources", "catalog")}


def test_only_two_rooms_import_what_is_heavy_at_module_level() -> None:
    """Loading, and the catalogue's SQL; everywhere else they wait in functions, or are for the type checker alone."""
    for file in PACKAGE.rglob("*.py"):
        heavy = {
            name
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in _imports(node)
            if name.partition(".")[0] in HEAVY
        }
        lazy = "loading" in file.parts or file.is_relative_to(PACKAGE / "catalog" / "sql")
        assert not heavy or lazy, f"{file} imports {heavy}"


def test_no_file_hides_the_registry() -> None:
    """A module named registry in a package that gives the object would, once imported, take the object's place."""
    for place in (PACKAGE, PACKAGE / "engine" / "model_runner"):
        assert not (place / "registry.py").exists() and not (place / "registry").exists()
