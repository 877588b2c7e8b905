"""Entries that an installed package brings, by the entry point group `medvllm.catalogs`."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError, ModelExistsError, ModelNotFoundError
from tests.support import tiny

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "hospital-models"
version = "1.2"

[project.entry-points."medvllm.catalogs"]
hospital = "hospital_models"

[tool.setuptools]
packages = ["hospital_models"]

[tool.setuptools.package-data]
hospital_models = ["catalog.toml"]
"""
ENTRIES = """
[models.ward-bert]
model_type = "clinical"
model_path = "{folder}"
task = "fill-mask"
also_known_as = ["hospital/ward-bert"]

[models."biobert-base-cased-v1.2"]
model_type = "biomedical"
description = "Our copy."
"""
Place = Callable[[str, str], None]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed a hospital's package. Its code must not run."""
    source, target = tmp_path_factory.mktemp("hospital"), tmp_path_factory.mktemp("site")
    folder = tiny.bert_masked_lm(source / "weights")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "hospital_models").mkdir()
    (source / "hospital_models" / "__init__.py").write_text("raise RuntimeError('this code must not run')\n")
    (source / "hospital_models" / "catalog.toml").write_text(ENTRIES.format(folder=folder))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=300)
    return target


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A call that puts a package with a catalogue where Python finds it, as an installer leaves it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def put(name: str, entries: str) -> None:
        (site / name).mkdir()
        (site / name / "__init__.py").touch()
        (site / name / "catalog.toml").write_text(entries)
        described = site / f"{name}-2.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (described / "entry_points.txt").write_text(f"[medvllm.catalogs]\n{name} = {name}\n")

    return put


def _entry(name: str, more: str = "") -> str:
    return f'[models.{name}]\nmodel_type = "clinical"\nmodel_path = "acme/bert"\n{more}'


def test_a_package_that_pip_installed_brings_its_entries(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed with their origin, load, and the receipt names the package; built-in entries stand behind."""
    monkeypatch.syspath_prepend(str(installed))
    registry = ModelRegistry()
    found = registry.list_models(origin="package")
    assert sorted(found) == ["biobert-base-cased-v1.2", "ward-bert"]
    assert {entry.package for entry in found.values()} == {"hospital-models 1.2"}
    assert found["ward-bert"].to_dict()["package"] == "hospital-models 1.2"
    assert registry.get_metadata("hospital/ward-bert").name == "ward-bert"
    assert registry["biobert-base-cased-v1.2"].description == "Our copy."
    with registry.lease("ward-bert") as lease:
        receipt = lease.receipt.to_dict()
    assert (receipt["origin"], receipt["package"]) == ("package", "hospital-models 1.2")
    assert "hospital_models" not in sys.modules


def test_what_is_registered_is_found_before_a_package(place: Place) -> None:
    """In this process or stored, with the next number; without it, the package's is meant again."""
    place("wards", _entry("m"))
    registry = ModelRegistry()
    with pytest.raises(ModelExistsError, match=r"'m' is already registered \(package, version 1\)"):
        registry.register("m", "generic")
    assert registry.register("m", "generic", persist=True, replace=True).version == 2
    assert registry.get_metadata("m").origin == "stored"
    assert registry.register("m", "generic", replace=True).version == 3
    registry.unregister("m")
    registry.unregister("m", persist=True)
    assert registry.get_metadata("m").origin == "package"
    registry.unregister("m")
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata("m")
    assert ModelRegistry()["m"].package == "wards 2.0"


@pytest.mark.parametrize(
    "broken",
    [
        _entry("bad", "max_length = -1\n"),
        _entry("bad", "max_length = \n"),
        _entry("bad").replace("acme/bert", "./here"),
        _entry("bad") + "[aliases.bad]\nproduction = 1\n",
        '[models]\nbad = {model_type = "clinical", max_length = -1}\n',
        _entry("bad", "max_length = \n").replace("[models.", "[ models . "),
    ],
    ids=["a fact", "no TOML", "a relative folder", "aliases", "an inline table", "spaces"],
)
def test_a_broken_package_does_not_break_the_others(
    place: Place, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """One warning names it. What it has under a name is an error, and never another model."""
    place("wards", _entry("good"))
    place("broken", broken)
    registry = ModelRegistry()
    for _ in range(2):
        assert "good" in registry.list_models() and "bad" not in registry.list_models()
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "package broken 2.0" in record.getMessage()
    with pytest.raises(CatalogError, match=r"package broken 2\.0 cannot be used"):
        registry.get_metadata("bad")
    assert registry.register("bad", "generic", replace=True).origin == "process"


def test_another_name_of_a_broken_package_means_no_other_model(place: Place) -> None:
    """Without the check, it would be taken for a repository on the Hub, and loaded from there."""
    place("broken", _entry("bad", 'max_length = -1\nalso_known_as = ["acme/other"]\n'))
    with pytest.raises(CatalogError, match=r"package broken 2\.0 cannot be used"):
        ModelRegistry().load_model("acme/other")


def test_a_name_in_two_packages_is_neither(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The error names both; their other entries can be used."""
    place("north", _entry("m") + _entry("n", 'also_known_as = ["acme/x"]\n'))
    place("south", _entry("m") + _entry("s", 'also_known_as = ["acme/x"]\n'))
    registry = ModelRegistry()
    assert {"n", "s"} <= registry.list_models().keys() and "m" not in registry.list_models()
    for name in ("m", "acme/x"):
        with pytest.raises(CatalogError, match=r"in two packages: north 2\.0 and south 2\.0"):
            registry.get_metadata(name)
    assert len(caplog.records) == 2


def test_an_entry_point_must_name_a_package_with_the_file(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A package without the file, a module that does not exist, and a name inside a module are told apart."""
    place("empty", "")
    (tmp_path / "site" / "empty" / "catalog.toml").unlink()
    for value in ("empty", "missing", "missing.deeper", "empty:catalog"):
        (tmp_path / "site" / "empty-2.0.dist-info" / "entry_points.txt").write_text(
            f"[medvllm.catalogs]\nx = {value}\n"
        )
        caplog.clear()
        assert "biobert-base-cased-v1.2" in ModelRegistry().list_models()
        (record,) = caplog.records
        assert (
            "package empty 2.0" in record.getMessage()
            and value.partition(":")[0].partition(".")[0] in record.getMessage()
        )


def test_a_package_inside_another_is_found_without_running_either(place: Place, tmp_path: Path) -> None:
    """The code of the outer one may fail in any way."""
    place("outer", "")
    site = tmp_path / "site"
    (site / "outer" / "__init__.py").write_text("raise SystemExit('this code must not run')\n")
    (site / "outer" / "inner").mkdir()
    (site / "outer" / "inner" / "catalog.toml").write_text(_entry("m"))
    (site / "outer-2.0.dist-info" / "entry_points.txt").write_text("[medvllm.catalogs]\nx = outer.inner\n")
    assert ModelRegistry()["m"].package == "outer 2.0"
    assert "outer" not in sys.modules


@pytest.mark.parametrize("text", ["[medvllm.catalogs]\nx\n", "[other]\nx\n# medvllm.catalogs\n"])
def test_damaged_entry_points_do_not_break_other_packages(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """One warning says where they are."""
    place("wards", _entry("good"))
    place("damaged", _entry("m"))
    (tmp_path / "site" / "damaged-2.0.dist-info" / "entry_points.txt").write_text(text)
    assert "good" in ModelRegistry().list_models()
    assert [str(tmp_path / "site") in message for message in caplog.messages] in ([], [True])


def test_a_file_in_another_encoding_keeps_its_names(place: Place, tmp_path: Path) -> None:
    """A byte order mark is no error; another encoding is one, for each name in the file."""
    place("wards", "")
    file = tmp_path / "site" / "wards" / "catalog.toml"
    file.write_text(_entry("m"), encoding="utf-8-sig")
    assert "m" in ModelRegistry().list_models()
    file.write_text(_entry("m", 'description = "é"\n'), encoding="latin-1")
    with pytest.raises(CatalogError, match=r"package wards 2\.0 cannot be used"):
        ModelRegistry().get_metadata("m")


def test_another_name_in_a_package_does_not_replace_a_repository(place: Place) -> None:
    """`hf://` means the repository, whatever a package calls another one."""
    place("wards", _entry("m", 'also_known_as = ["dmis-lab/biobert-base-cased-v1.2"]\n'))
    registry = ModelRegistry()
    assert registry["dmis-lab/biobert-base-cased-v1.2"].name == "m"
    assert registry["hf://dmis-lab/biobert-base-cased-v1.2"].origin == "built-in"
    assert registry["hf://acme/bert"].name == "m"
