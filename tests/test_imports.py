"""What an import costs. Which module may import which is checked by `make lint`: see pyproject.toml."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry

PACKAGE = Path(__file__).parents[1] / "medvllm"
HEAVY = {"torch", "transformers", "huggingface_hub", "tokenizers", "numpy", "sqlalchemy", "ray", "fastapi", "httpx2"}


# Each line is run in one process, after the ones above it.
LOOKING = """
from medvllm.engine.model_runner import registry, ModelType; registry.list_models(ModelType.CLINICAL)
registry.get_metadata("biobert-base-cased-v1.2")
registry.list_models(task="embed", tags=["bert"], match="*")
registry.register("m", "generic", model_class="a.b:C")
from medvllm.cli.app import make_app; run = lambda *words: make_app([*words])([*words], standalone_mode=False)
run("list")
run("list", "--type", "clinical", "--json")
run("show", "biobert-base-cased-v1.2")
run("--help")
from medvllm.cli.completion import model_names; assert [*model_names("b")]
"""


def test_looking_imports_nothing_heavy() -> None:
    """Import, list, filter, register, show, help and completion."""
    code = "import sys\n" + "\n".join(
        f"exec({line!r})\nheavy = {HEAVY} & {{*sys.modules}}\nassert not heavy, ({line!r}, heavy)"
        for line in LOOKING.strip().splitlines()
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("words", [("list",), ("show", "m"), ("history", "m")])
def test_stored_entries_are_shown_without_sqlalchemy(registry: ModelRegistry, words: tuple[str, ...]) -> None:
    """A SQLite file is read by Python's own module."""
    registry.register("m", "generic", model_path="acme/m", persist=True)
    code = (
        "import sys; from medvllm.cli.app import make_app\n"
        f"words = {[*words]!r}; make_app(words)(words, standalone_mode=False); assert 'sqlalchemy' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "m" in run.stdout, run.stderr


# What each step must not import, in a process of its own. What Python imports at its start does not count.
_USED_LATER = {"email", "hashlib", "importlib.metadata", "medvllm.catalog.sql", "sqlite3", "tempfile", "tomllib"}
LIGHT = {
    "from medvllm.engine.model_runner import registry, ModelType": _USED_LATER
    | {"ast", "copy", "dataclasses", "datetime", "inspect", "json", "logging", "pathlib", "threading", "urllib.parse"}
    | {"medvllm.catalog", "medvllm.metadata", "medvllm.settings"},
    "from medvllm.engine.model_runner import registry; registry.list_models()": _USED_LATER
    | {"datetime", "logging", "shlex"}
    | {"medvllm.catalog.difference", "medvllm.catalog.events", "medvllm.catalog.log", "medvllm.model_registry.session"},
    "from medvllm.cli.app import make_app; make_app(['list'])(['list', 'x', '--tag', 'ner'], standalone_mode=False)": (
        _USED_LATER | {"pydantic", "rich", "medvllm.cli.show", "medvllm.cli.run", "medvllm.cli.register"}
    ),
}


@pytest.mark.parametrize("step", LIGHT)
def test_a_start_imports_only_what_it_uses(step: str) -> None:
    """Importing the registry, listing, and the command that lists."""
    extra = f"{LIGHT[step]} & ({{*sys.modules}} - before)"
    code = f"import sys\nbefore = {{*sys.modules}}\n{step}\nextra = {extra}\nassert not extra, extra"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


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
    "from medvllm import registry, ModelRunner, ModelRegistry, ModelMetadata, ModelType, Request",
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


def test_no_file_hides_the_registry() -> None:
    """A module named registry in a package that gives the object would, once imported, take the object's place."""
    for place in (PACKAGE, PACKAGE / "engine" / "model_runner"):
        assert not (place / "registry.py").exists() and not (place / "registry").exists()
