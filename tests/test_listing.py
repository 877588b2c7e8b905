"""`medvllm list` and `show` at 80 columns, what they find, what is here, and names that the shell completes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from medvllm.cli.completion import model_names, stored_names
from medvllm.cli.table import draw, shorten
from medvllm.engine.model_runner import registry
from medvllm.local_files import hub_cache, local_files
from medvllm.metadata import ModelMetadata
from medvllm.quantities import parse_size, shown_size
from tests.support import sentence, tiny
from tests.support.children import python
from tests.support.console import Screen, command
from tests.support.loopback import LoopbackHub


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on a terminal of so many columns and return its lines."""

    def run(columns: int, *arguments: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("NO_COLOR", "1")
        done = command(monkeypatch, *arguments, stdout=Screen())
        assert done.code == 0, done.err
        return done.out.splitlines()

    return run


def _names(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    done = command(monkeypatch, "list", *arguments)
    assert done.code == 0, done.err
    return [line.split("\t")[0] for line in done.out.splitlines()]


def test_the_list_is_one_line_a_model(screen: Any) -> None:
    """At 80 columns nothing is broken, and a name that is too long keeps its beginning and its end."""
    lines = screen(80, "list")
    assert len(lines) == 1 + len(registry) and max(map(len, lines)) <= 80
    assert lines[0].split() == ["NAME", "TYPE", "TASKS", "HERE", "SIZE"]
    names = [line.split()[0] for line in lines[1:]]
    assert len(set(names)) == len(names)
    for shown, name in zip(names, registry, strict=True):
        begin, _, end = shown.partition("…")
        assert name.startswith(begin) and name.endswith(end)
    assert [line.split()[0] for line in screen(160, "list")[1:]] == [*registry]
    assert len(screen(40, "list")) == len(lines) == len(screen(300, "list", "--wide"))
    assert "BioBERT base cased v1.2" in "\n".join(screen(80, "list", "--wide", "biobert-base"))


def test_tables_wrap_between_words_and_cut_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width, no line is longer, no short word is broken, and wide characters count twice."""
    rows = [["a" * 50, "some words of a sentence that is long", "x"], ["名前" * 20, "短い 言葉", "y"]]
    for columns in (200, 80, 40, 30):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = draw(("NAME", "WHY", "Z"), [rows[:1], rows[1:]])
        assert {"some", "words", "sentence", "短い"} <= set(text.split())
        assert max(len(line) for line in re.sub(r"\x1b\[\d*m", "", text).splitlines()) <= columns
    assert shorten("abcdefghij", 5) == "ab…ij" and shorten("abc", 5) == "abc"


def test_a_size_and_its_unit_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a sign and the name behind it, in a table that is too wide."""
    monkeypatch.setenv("COLUMNS", "44")
    drawn = draw(("SIZE", "WHAT", "WHY"), [[("164 KB", "+ clinic-ner@production", "because of this and that")]])
    assert "164 KB  + clinic-ner@production  " in drawn and "\xa0" not in drawn


def test_a_text_is_searched_and_a_glob_is_a_glob(monkeypatch: pytest.MonkeyPatch) -> None:
    """In names, other names and descriptions, in any case; the library has the same as `search`."""
    assert "biobert-base-cased-v1.2" in _names(monkeypatch, "biobert")
    assert _names(monkeypatch, "SAPBERT") == [*registry.list_models(search="SapBERT")] != []
    assert "emilyalsentzer/Bio_ClinicalBERT" in _names(monkeypatch, "clinicalbert", "--type", "Clinical")
    assert "obi/deid_bert_i2b2" in _names(monkeypatch, "protected health")
    assert _names(monkeypatch, "biobert*") == ["biobert-base-cased-v1.2"]
    assert _names(monkeypatch, "--limit", "1", "deid") == ["StanfordAIMI/stanford-deidentifier-base"]
    none = command(monkeypatch, "list", "biobret")
    assert (
        (none.code, none.out) == (0, "") and "Did you mean: 'biobert" in none.err and "medvllm list biobert" in none.err
    )
    assert "medvllm list" in command(monkeypatch, "list", "--where", "license=nothing").err


def test_mine_and_where_by_origin_name_and_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stored entries, those of this process, and built-in ones; what tells entries apart is a filter as facts are."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.register("stored-one", "generic", model_path=folder, persist=True)
    registry.register("stored-one", "generic", model_path=folder, persist=True, replace=True, max_length=8)
    registry.register("process-one", "generic", model_path=folder)
    try:
        assert _names(monkeypatch, "--mine") == ["process-one", "stored-one"]
        assert _names(monkeypatch, "--mine", "stored") == ["stored-one"]
        assert _names(monkeypatch, "--where", "origin=stored") == ["stored-one"]
        assert _names(monkeypatch, "--where", "origin=built-in", "--where", "name=biobert*") == [
            "biobert-base-cased-v1.2"
        ]
        assert _names(monkeypatch, "--where", "version=2") == ["stored-one"]
        assert [*registry.list_models(origin="process")] == ["process-one"]
        assert "stored-one" in registry and registry["stored-one"].version == 2 and "stored-one@7" not in registry
        assert "" not in registry and 3 not in registry and "./folder" not in registry and "SapBERT" in registry
        assert len(registry) == len([*registry]) == 44
    finally:
        registry.unregister("process-one")


def test_here_says_which_files_are_on_this_machine(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, screen: Any
) -> None:
    """Folders and the Hub's cache, whole checkpoints alone; sizes are those of the weights."""
    whole = tiny.bert_masked_lm(tmp_path / "whole")
    kinds: dict[str, Path] = {
        "whole": whole,
        "sharded": tiny.bert_masked_lm(tmp_path / "sharded", weights="sharded"),
        "pickle": tiny.bert_masked_lm(tmp_path / "pickle", weights="bin"),
        "sentences": sentence.assembled("bert-cls-2020", tmp_path / "sentences"),
        "broken": tiny.bert_masked_lm(tmp_path / "broken", weights="sharded"),
    }
    for name, folder in kinds.items():
        registry.register(f"f-{name}", "generic", model_path=folder)
    next(kinds["broken"].glob("model-*")).unlink()
    hub.add("acme/pulled", whole)
    hub.add("acme/absent", whole)
    for name in ("acme/pulled", "acme/absent"):
        registry.register(name, "generic")
    try:
        registry.pull("acme/pulled")
        found = {name: local_files(entry) for name, entry in registry.list_models(origin="process").items()}
        assert {name for name, files in found.items() if files} == {
            "acme/pulled",
            "f-pickle",
            "f-sentences",
            "f-sharded",
            "f-whole",
        }
        for name in ("acme/pulled", "f-whole"):
            files = found[name]
            assert files is not None and files.size_bytes == (whole / "model.safetensors").stat().st_size
        assert "f-broken" not in _names(monkeypatch, "--here") and "f-whole" in _names(monkeypatch, "--here")
        assert len(_names(monkeypatch, "--here", "--limit", "2")) == 2
        shown = next(line for line in screen(80, "list") if line.startswith("f-whole"))
        assert shown.split()[3:] == ["yes", *shown_size((whole / "model.safetensors").stat().st_size).split()]
        assert any(line.startswith("here") and "yes, " in line for line in screen(80, "show", "acme/pulled"))
    finally:
        for name in registry.list_models(origin="process"):
            registry.unregister(name)


@pytest.mark.parametrize("names", [[1], ["a", 1], [None], [["a"]], ["a\x00b"], ["n" * 300], "[" * 100_000])
def test_an_index_of_any_shape_stops_no_listing(tmp_path: Path, names: Any) -> None:
    """Its model is not here, as one whose shards are missing."""
    index = {"weight_map": dict(enumerate(names))}
    (tmp_path / "config.json").write_text("{}")
    text = names if isinstance(names, str) else json.dumps(index)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    entry = ModelMetadata.build("m", "generic", {"model_path": str(tmp_path)})
    assert local_files(entry) is None


def test_the_hubs_cache_is_found_without_importing_its_library() -> None:
    """By the variables that huggingface_hub reads, with the same result."""
    code = """
import sys
from medvllm.local_files import hub_cache
before = hub_cache()
assert "huggingface_hub" not in sys.modules
import huggingface_hub.constants
assert before == hub_cache(), (before, hub_cache())
"""
    for environment in (
        {"HF_HUB_CACHE": "$HOME/a"},
        {"HF_HOME": "~/b/$HOME"},
        {"HF_HUB_CACHE": "", "HF_HOME": "x"},
        {"XDG_CACHE_HOME": "/tmp/c"},
        {"HUGGINGFACE_HUB_CACHE": "/tmp/d"},
    ):
        forget = "import os; [os.environ.pop(name, None) for name in ('HF_HOME', 'HF_HUB_CACHE', 'XDG_CACHE_HOME')]\n"
        program = f"{forget}os.environ.update({environment})\n{code}"
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
    assert hub_cache() == Path(constants.HF_HUB_CACHE)


def test_listing_looks_at_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether 42 models are here is told in a few milliseconds of processor time."""
    entries = registry.list_models().values()
    start = time.process_time()
    assert len([local_files(entry) for entry in entries]) == len(entries)
    assert time.process_time() - start < 5


def test_show_is_one_table(screen: Any, tmp_path: Path) -> None:
    """Its groups share their columns, blank lines part them, and what is not known is said."""
    lines = screen(80, "show", "SapBERT")
    assert max(map(len, lines)) <= 80 and "" in lines and lines[0].split() == ["FACT", "VALUE", "PROVENANCE"]
    column = lines[0].index("VALUE")
    assert all(line[column - 2 : column].strip() == "" for line in lines)
    text = "\n".join(lines)
    assert "cambridgeltl/SapBERT-from-PubMedBERT-fulltext" in text and "also_known_as" in text
    assert "090663c3ae57bf35ffc7c1ac7ac1a7f8"[:8] in text or re.search(r"revision +[0-9a-f]{40}", text)
    unpinned = next(m for m in registry.list_models(revision=None).values() if m.source.revision is None)
    shown = " ".join(" ".join(screen(120, "show", unpinned.name)).split())
    assert "main (not pinned" in shown
    unlicensed = next(iter(registry.list_models(license=None)))
    assert re.search(r"license +not known", "\n".join(screen(120, "show", unlicensed)))


def test_show_tells_versions_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When each was made, by whom and why; what points to it; whether it is locked and has a baseline."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    for length, reason in ((8, "first"), (16, "longer notes")):
        facts: dict[str, Any] = {"max_length": length, "reason": reason, "persist": True, "replace": length > 8}
        registry.register("versions", "generic", model_path=folder, **facts)
    registry.catalog.set_alias("versions", "production", 1)
    registry.lock("versions@1")
    rows = [line.split("\t") for line in command(monkeypatch, "show", "versions").out.splitlines()]
    first, second = (next(row for row in rows if row[0] == f"version {number}") for number in (1, 2))
    assert "by " in first[1] and first[1].endswith(": first") and re.match(r"\d{4}-\d\d-\d\d", first[1])
    assert first[2] == "aliases: production; locked; no baseline"
    assert second[2] == "default version; not locked; no baseline"
    told = json.loads(command(monkeypatch, "show", "versions", "--json").out)
    assert told["versions"] == [1, 2] and told["version_aliases"] == {"production": 1}
    assert [record["reason"] for record in told["version_log"]] == ["first", "longer notes"]


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that begin with what was typed; other names where no entry does; never an error, and nothing heavy."""
    assert [*model_names("biob")] == ["biobert-base-cased-v1.2"] and "SapBERT" in [*model_names("sapb")]
    assert [*model_names("zzz")] == [] and [*stored_names("")] == []
    registry.register("mine", "generic", model_path=tiny.bert_masked_lm(tmp_path / "m"), persist=True)
    assert [*stored_names("MI")] == ["mine"]
    monkeypatch.setenv("MEDVLLM_CATALOG", "postgresql://nobody@127.0.0.1:9/none")
    assert [*model_names("x")] == [*stored_names("x")] == []


def test_the_shell_gets_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the protocol that typer's script for bash speaks."""
    for words in ("medvllm show biob", "medvllm run biob", "medvllm pull x biob", "medvllm list biob"):
        monkeypatch.setenv("_MEDVLLM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        done = command(monkeypatch)
        assert (done.out.split(), done.err) == (["biobert-base-cased-v1.2"], "")


def test_sizes_are_written_as_they_are_read() -> None:
    """`shown_size` and `parse_size` agree but for rounding."""
    assert [shown_size(n) for n in (0, 999, 90_900, 438_000_000, 18_957_400_000)] == [
        "0 B",
        "999 B",
        "90.9 KB",
        "438 MB",
        "18.96 GB",
    ]
    for n in (10**k * 3 for k in range(15)):
        assert abs(parse_size(shown_size(n)) - n) <= n / 100


def test_the_module_is_a_program() -> None:
    """`python -m medvllm`."""
    run = python("import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('medvllm', None, '__main__')")
    assert run.stdout.startswith("medvllm "), run.stderr
