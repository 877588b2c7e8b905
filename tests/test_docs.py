"""The documentation is true: blocks run, generated pages are fresh, links lead somewhere."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from medvllm import settings
from medvllm.engine.model_runner import ModelType, registry
from tests import test_batch_resume, test_kills, test_mutations
from tests.support import tiny, warm
from tests.support.adapters import lora
from tests.support.console import command
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.standins import STANDINS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def served(hub: LoopbackHub, tmp_path: Path) -> Iterator[None]:
    """A Hub with the repositories that the documentation names; the process-wide registry, cleaned afterwards."""
    biobert = tiny.bert_masked_lm(tmp_path / "biobert", weights="bin", tokenizer_files="vocab_only", model_type=False)
    hub.add("dmis-lab/biobert-base-cased-v1.2", convert(biobert), commit="67c9c25b46986521ca33df05d8540da1210b3256")
    # The README's own entry asks for the main branch of a repository whose weights carry the head.
    clinical = tiny.bert_masked_lm(tmp_path / "clinical", weights="bin", tokenizer_files="vocab_only")
    hub.add("emilyalsentzer/Bio_ClinicalBERT", convert(clinical), commit="d5892b39a4adaed74b92212a44081509db72f87b")
    hub.add("obi/deid_bert_i2b2", convert(STANDINS["obi/deid_bert_i2b2"](tmp_path / "deid")))
    hub.add("microsoft/biogpt", convert(STANDINS["microsoft/biogpt"](tmp_path / "biogpt")))
    whole = tiny.bert_masked_lm(tmp_path / "whole")
    hub.add("ward/drugs-lora", lora(tmp_path / "lora", whole, stated_base="dmis-lab/biobert-base-cased-v1.2"))
    before = set(registry.list_models())
    yield
    for name in set(registry.list_models()) - before:
        registry.unregister(name)
    registry.clear_cache()


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/running.md"])
def test_the_blocks_of_a_page_run_in_order(served: None, page: str) -> None:
    """In one session, as a reader would paste them."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_demo_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As `make demo` runs it: each sentence has its neighbour."""
    before = set(registry.list_models())
    try:
        runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    finally:
        for name in set(registry.list_models()) - before:
            registry.unregister(name)
        registry.clear_cache()
    assert "Nearest neighbours" in capsys.readouterr().out


def test_the_page_on_the_catalogue_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands in a shell that stops at the first error, then its Python, on the same catalogue."""
    page = (ROOT / "docs" / "catalog.md").read_text()
    for seed, name in enumerate(("ner", "ner-2")):
        tiny.bert_token_classifier(home / name, ["O", "B-X", "I-X"], seed=seed)
    monkeypatch.chdir(home)
    monkeypatch.setenv("PATH", f"{warm.program(tmp_path).parent}:{os.environ['PATH']}")
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    run = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert "Nothing changed: the latest version of 'clinic-ner' is 1." in said
    assert "clinic-ner\tproduction\t2\tprotected" in said and said[-1].startswith("ok\t")
    namespace: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "catalog.md", "exec"), namespace)


def test_the_filters_of_the_readme_find_something() -> None:
    """Its first row, and the words that it says people search for."""
    row = re.search(r"`registry\.list_models\((.*?)\)`", (ROOT / "README.md").read_text())
    assert row and eval(f"registry.list_models({row[1]})", {"registry": registry, "ModelType": ModelType})
    assert "biobert-base-cased-v1.2" in registry.list_models(search="biobert")


def test_the_examples_of_the_readme_are_as_long_as_it_says() -> None:
    """Ten lines are ten lines."""
    block = re.search(r"## Ten lines\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block and len([line for line in block[1].splitlines() if line.strip()]) == 10


def _commands(text: str) -> list[list[str]]:
    """The commands of a page's shell blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert all(line[0] == "medvllm" for line in lines if line)
    return [line[1:] for line in lines if line]


def test_the_page_on_large_corpora_runs(served: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its Python, which finds the batch complete; the counts of kills are those of the tests."""
    page = (ROOT / "docs" / "batch.md").read_text()
    monkeypatch.chdir(home)
    Path("notes.jsonl").write_text('{"id": 1, "text": "Seen by Dr. Miller."}\n{"id": 2}\n')
    for arguments in _commands(page):
        done = command(monkeypatch, *arguments)
        assert done.code == 0, (arguments, done.err)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "batch.md", "exec"), namespace)
    assert (namespace["done"].answered, namespace["done"].bad_rows, namespace["done"].parts_of_run) == (1, 1, 0)
    assert f"{test_batch_resume.SOME} times" in page and f"{test_batch_resume.MANY} times" in page
    registry.clear_cache()


def test_the_page_on_a_fine_tuned_model_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder as a Trainer leaves it to a second release; the alias ends at version 2."""
    page = (ROOT / "docs" / "fine_tuned.md").read_text()
    for seed, name in enumerate(("clinic-ner", "clinic-ner-2")):
        folder = tiny.bert_token_classifier(home / name, ["O", "B-DRUG", "I-DRUG"], seed=seed)
        tiny.copy(folder, folder / "checkpoint-60")
    monkeypatch.chdir(home)
    for arguments in _commands(page):
        done = command(monkeypatch, *arguments)
        assert done.code == 0, (arguments, done.err)
    assert "clinic-ner\tproduction\t2\tprotected" in command(monkeypatch, "alias", "list").out
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "fine_tuned.md", "exec"), {})
    registry.clear_cache()


def test_the_page_on_an_air_gapped_site_runs(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine with its own home, cache and working directory; the site's settings stand in its file."""
    page = (ROOT / "docs" / "air_gapped.md").read_text()
    labels = ["O", *(f"{place}-PATIENT" for place in "BILU")]
    hub.add("obi/deid_bert_i2b2", tiny.bert_token_classifier(home / "deid", labels))
    build, site = home / "build", home / "site"
    profile = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for folder in (build, site, home / "srv" / "medvllm"):
        folder.mkdir(parents=True)
    (home / "config.toml").write_text(profile[0].replace("/srv/", f"{home}/srv/"))
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        here = build if "Build site" in section.splitlines()[0] else site
        with monkeypatch.context() as machine:
            machine.chdir(here)
            machine.setenv("MEDVLLM_HOME", str(here / "home"))
            machine.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
            if here is site:
                machine.setattr(settings, "SYSTEM", home / "config.toml")
                machine.setattr(constants, "HF_HUB_OFFLINE", True)
                shutil.copy(build / "bundle.tar", site)
                shutil.copy(build / "medvllm.lock", site / "approved.lock")
            for arguments in _commands(section):
                done = command(machine, *arguments)
                assert done.code == 0, (arguments, done.out, done.err)
            registry.clear_cache()
    assert json.loads((site / "receipt.json").read_text())["verified"]["locked"] is True


def test_generated_pages_are_fresh() -> None:
    """`make docs` would change nothing."""
    pages: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    for name, content in pages.items():
        assert (ROOT / "docs" / name).read_text() == content, f"{name} is stale: run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Each relative link; other sites are not asked."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_help_explains_every_target() -> None:
    """The ones that CONTRIBUTING and README name, and no undocumented one."""
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+)", out, re.MULTILINE)) == {
        *("help", "demo", "test", "test-slow", "lint", "fix", "bench", "docs", "release-notes", "clean")
    }


def test_the_architecture_names_every_room() -> None:
    """A new file at the top of the package needs a line there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    for entry in (ROOT / "medvllm").iterdir():
        if not entry.name.startswith("__") and entry.name != "py.typed":
            assert f"`{entry.name}" in page, f"{entry.name} is not in architecture.md"


def test_the_page_on_reliability_names_tests_and_numbers_that_are_so() -> None:
    """Every test by its file and name; the inputs and rounds that the tests try."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", page)
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name} is not there"
    for module in (test_mutations, test_kills):
        assert module.__file__
        kinds = Path(module.__file__).read_text().count("\n@counted\n")
        for count in (module.SOME, module.MANY):
            assert f"{kinds} × {count:,} = {kinds * count:,}" in page
