"""What CONTRIBUTING.md tells a newcomer is true, and so is what the Makefile promises."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from medvllm.engine.model_runner import ModelRegistry
from tests.support import standins
from tests.support.loopback import LoopbackHub

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def _blocks(language: str) -> list[str]:
    """Return the code blocks of a language, also those of a list's items."""
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in blocks]


def _dry_run(*arguments: str, **variables: str) -> str:
    """Return the commands that make would run, whatever the make that runs the tests was told."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ARGS", "MAKEFLAGS")}
    command = ["make", "-n", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=True
    ).stdout


def test_the_commands_exist() -> None:
    """Each make target, each program of the environment, each test file."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in "".join(_blocks("sh")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "make":
            assert arguments[0] in targets, line
        else:
            assert (Path(sys.executable).parent / program.removeprefix(".venv/bin/")).exists(), line
        for file in (argument for argument in arguments if argument.endswith(".py")):
            assert (ROOT / file).exists(), line


def test_the_files_that_the_page_names_exist() -> None:
    """In backticks, with a folder; names in capitals stand for the newcomer's own."""
    for path in re.findall(r"`([a-z_./]+/[a-z_.]*)`", PAGE):
        assert path.startswith(".venv") or (ROOT / path.removesuffix("/")).exists(), path


def test_the_entry_that_the_page_adds_loads_from_its_stand_in(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path
) -> None:
    """It keeps to the schema, says where each fact was seen, and gives the labels that the repository lacks."""
    (block,) = _blocks("toml")
    schema = json.loads(files("medvllm.catalog").joinpath("entries.schema.json").read_text())
    validator: Any = Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(tomllib.loads(block))] == []
    ((name, facts),) = tomllib.loads(block)["models"].items()
    assert set(facts["provenance"]) <= set(facts)
    example, stand_in = _blocks("python")
    namespace: dict[str, Any] = vars(standins) | {"STANDINS": {}}
    exec(stand_in, namespace)
    hub.add(name, namespace["STANDINS"][name](tmp_path / "m", weights="safetensors"))
    registry.register(name, **facts)
    model: Any = registry.load_model(name)
    assert list(model.config.id2label.values()) == facts["id2label"]
    ast.parse(example)


def test_make_passes_arguments_to_pytest() -> None:
    """`make test ARGS=...`; in CI, a skipped test is a failure."""
    assert re.search(r"/pytest -rs .* -k lock$", _dry_run("test", "ARGS=-k lock"), re.MULTILINE)
    assert "--fail-on-skip" not in _dry_run("test")
    assert "pytest -rs --fail-on-skip" in _dry_run("test", CI="1")
    assert "\nCI=1 make test\n" in (ROOT / ".ci" / "run").read_text()


def test_ci_fails_if_a_test_is_skipped(tmp_path: Path) -> None:
    """The summary says which, and why."""
    (tmp_path / "test_it.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('no such program')\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.skips", "-rs", "--fail-on-skip", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "no such program" in run.stdout and "1 skipped" in run.stdout


def test_the_release_notes_hold_every_fragment() -> None:
    """And a file in changelog.d that is named otherwise than its README says is an error."""
    fragments = [file for file in (ROOT / "changelog.d").iterdir() if file.name not in ("README.md", "template.md")]
    command = [str(Path(sys.executable).parent / "towncrier"), "build", "--draft", "--version", "1.0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n- ") == len(fragments)
    assert all(fragment.read_text().splitlines()[0] in run.stdout for fragment in fragments)
