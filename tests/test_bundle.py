"""Bundles: models carried to a site without a network, in one file that is trusted in nothing."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, MedVLLMError, ModelNotFoundError, OutputError, SourceError
from medvllm.sources.bundle import ExportRecord
from tests.support import tiny
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread


@pytest.fixture
def acme(hub: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """A Hub with a model in safetensors and one whose weights are a pickle."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    hub.add("acme/bin", convert(tiny.bert_masked_lm(tmp_path / "bin", weights="bin", tokenizer_files="vocab_only")))
    return hub


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that moves the test to another machine: empty home, cache and lock."""
    from huggingface_hub import constants

    def move(name: str) -> Path:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        monkeypatch.setenv("MEDVLLM_HOME", str(home / "medvllm"))
        monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(home / "medvllm.lock"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        return home

    return move


def _files(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
        and not f.name.startswith("catalog.db")
        and f.suffix not in (".db", ".lock", ".json-lock")
        and f.parent.name != "run"
    }


def test_a_bundle_carries_models_entries_and_lock(
    registry: ModelRegistry, acme: LoopbackHub, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """A repository's, a pickled one's entry and a folder's: they load on the other side without a request."""
    registry.register("tagger", "clinical", model_path=tiny.bert_token_classifier(tmp_path / "t", ["O", "B-X"]))
    registry.register("cased", "clinical", model_path="acme/bin", do_lower_case=False, pooling="cls")
    registry.lock("acme/bert", "cased", "tagger")
    exported = registry.export(tmp_path / "b.tar", "acme/bert", "cased", "tagger")
    assert exported.models == ("acme/bert", "cased@1", "tagger@1")
    content = (tmp_path / "b.tar").read_bytes()
    assert (exported.size_bytes, exported.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    home = site("hospital")
    acme.log.clear()
    other = ModelRegistry()
    imported = other.import_bundle(tmp_path / "b.tar", lock=True)
    assert imported.models == {"acme/bert": "new", "cased@1": "new", "tagger@1": "new"}
    assert (imported.sha256, imported.contents) == (exported.sha256, exported.contents)
    (tmp_path / "t").rename(tmp_path / "gone")
    tagger: Any = other.load_model("tagger")
    assert other.load_model("acme/bert") and tagger.config.id2label[1] == "B-X"
    with other.lease("cased") as lease:
        assert lease.metadata.behaviour.pooling == "cls" and lease.metadata.origin == "stored"
        assert lease.tokenizer.tokenize("Aspirin") == ["Aspirin"]
    assert other.verify() == {"acme/bert": {}, "cased@1": {}, "tagger@1": {}}
    assert acme.log == []
    before, events = _files(home), other.catalog.history()
    again = ModelRegistry().import_bundle(tmp_path / "b.tar", lock=True, reason="again")
    assert not again.is_new and set(again.models.values()) == {"here"}
    assert _files(home) == before and other.catalog.history() == events
    assert not [path for path in (home / "hub").iterdir() if path.name.startswith(".medvllm")]
    assert not list((home / "hub" / ".locks" / "medvllm-import").iterdir())


def test_the_same_models_give_the_same_contents(
    registry: ModelRegistry, acme: LoopbackHub, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """In another order, on another day, on another machine: only the last member, who exported them, is another."""
    first = registry.export(tmp_path / "a.tar", "acme/bert", "acme/bin", unlocked=True)
    os.utime(registry.pull("acme/bert") / "vocab.txt", (1, 1))
    second = registry.export(tmp_path / "b.tar", "acme/bin", "acme/bert", unlocked=True)
    site("other")
    convert(tmp_path / "bin")
    third = ModelRegistry().export(tmp_path / "c.tar", "acme/bert", "acme/bin", unlocked=True)
    assert first.contents == second.contents == third.contents
    members = []
    for name in ("a", "b", "c"):
        with tarfile.open(tmp_path / f"{name}.tar") as tar:
            members.append([(m.name, tar.extractfile(m).read()) for m in tar.getmembers()])  # type: ignore[union-attr]
    assert members[0][:-1] == members[1][:-1] == members[2][:-1] and members[0][-1][0] == "export.json"
    rooms = {name.partition("/")[0] for name, _ in members[0]}
    assert rooms == {"manifest.json", "entries.toml", "medvllm.lock", "blobs", "export.json"}
    assert hashlib.sha256(members[0][0][1]).hexdigest() == first.contents


def test_an_unregistered_folder_takes_its_own_name(
    registry: ModelRegistry, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its path would mean nothing elsewhere."""
    registry.export(tmp_path / "b.tar", tiny.bert_encoder(tmp_path / "our-bert"), unlocked=True)
    site("hospital")
    assert ModelRegistry().import_bundle(tmp_path / "b.tar").models == {"our-bert": "new"}
    assert ModelRegistry().load_model("our-bert")


def test_what_is_locked_otherwise_is_refused(
    registry: ModelRegistry, acme: LoopbackHub, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """Before anything is visible; `replace` says that it is meant, and approves nothing."""
    registry.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    home = site("hospital")
    acme.add("acme/bert", tiny.bert_masked_lm(tmp_path / "new", seed=1))
    other = ModelRegistry()
    other.lock("acme/bert")
    before = _files(home)
    with pytest.raises(DigestMismatchError, match="'acme/bert' is locked to acme/bert at"):
        other.import_bundle(tmp_path / "b.tar")
    assert _files(home) == before
    other.import_bundle(tmp_path / "b.tar", replace=True)
    other.import_bundle(tmp_path / "b.tar", replace=True, lock=True)
    assert other.verify() == {"acme/bert": {}} and _files(home) != before


def _rewritten(bundle: Path, target: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Path:
    """Write a bundle with other members, whose digests in the manifest are put right where they are still there."""
    with tarfile.open(bundle) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target


def _renamed(name: str) -> Callable[[list[Any]], None]:
    return lambda members: setattr(members[-2][0], "name", name)


_SAID = ExportRecord("ana", "build", "2026-05-03T10:00:00+00:00", "medvllm 1", 3, "0" * 64)


def _in_export_record(content: bytes) -> Callable[[list[Any]], None]:
    return lambda members: members.__setitem__(-1, (members[-1][0], content))


def _typed(kind: bytes) -> Callable[[list[Any]], None]:
    def change(members: list[Any]) -> None:
        members[-2][0].type, members[-2][0].linkname = kind, "/etc/passwd"

    return change


def _in_manifest(edit: Callable[[dict[str, Any]], object]) -> Callable[[list[Any]], None]:
    def change(members: list[Any]) -> None:
        manifest = json.loads(members[0][1])
        edit(manifest)
        members[0] = members[0][0], json.dumps(manifest).encode()

    return change


def _in_lock(old: str, new: str) -> Callable[[list[Any]], None]:
    """Edit the lock and the digest that the manifest has of it."""

    def change(members: list[Any]) -> None:
        content = members[2][1].replace(old.encode(), new.encode())
        assert content != members[2][1]
        members[2] = members[2][0], content
        row = {"name": "medvllm.lock", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _in_manifest(lambda m: m["members"].__setitem__(1, row))(members)

    return change


@pytest.mark.parametrize(
    "change",
    spread(
        [
            _renamed("/etc/cron.d/x"),
            _renamed("../../x"),
            _renamed("blobs/../../x"),
            _renamed("blobs/" + "0" * 64),
            _typed(tarfile.SYMTYPE),
            _typed(tarfile.LNKTYPE),
            _typed(tarfile.CHRTYPE),
            _typed(tarfile.FIFOTYPE),
            _typed(tarfile.DIRTYPE),
            lambda members: members.insert(-1, members[-2]),
            lambda members: members.append(members[-1]),
            lambda members: members.append((tarfile.TarInfo("more"), b"x")),
            lambda members: members.pop(),
            lambda members: members.pop(-2),
            _in_export_record(b"{}"),
            _in_export_record(b"[1]"),
            _in_export_record(replace(_SAID, by="\x1b[2J").to_json()),
            _in_export_record(replace(_SAID, program="x" * 201).to_json()),
            _in_export_record(replace(_SAID, events=-1).to_json()),
            _in_export_record(_SAID.to_json().replace(b"ana", b"eve")),
            lambda members: members.pop(0),
            lambda members: members.clear(),
            lambda members: members.reverse(),
            _in_manifest(lambda m: m.update(version=1)),
            _in_manifest(lambda m: m.pop("members")),
            _in_manifest(lambda m: m["members"].append(m["members"][-1])),
            _in_manifest(lambda m: m["members"][-1].update(name="../x")),
            _in_manifest(lambda m: m["members"][0].update(size=-1)),
            _in_manifest(lambda m: m["members"][2].update(size=1 << 60)),
            _in_manifest(lambda m: m["members"][2].update(size=float("inf"))),
            _in_manifest(lambda m: m.update(listings={})),
            _in_manifest(lambda m: m["listings"].update({"acme/bert": m["members"][-1]["sha256"]})),
            _in_manifest(lambda m: m.update(branches={"acme/bert": "\ud800"})),
            _in_lock('models."acme/bert"', 'models."acme/other"'),
            _typed(tarfile.GNUTYPE_LONGNAME),
            _typed(tarfile.XHDTYPE),
            _typed(tarfile.GNUTYPE_SPARSE),
            _in_lock("config.json", "../config.json"),
            _in_lock("vocab.txt", "/etc/x"),
            _in_lock('source = "acme/bert"', 'source = "../../acme"'),
            _in_lock("version = 1", "version = 9"),
        ],
        2,
    ),
)
def test_tricks_are_refused_and_leave_nothing(
    registry: ModelRegistry,
    acme: LoopbackHub,
    site: Callable[[str], Path],
    tmp_path: Path,
    change: Callable[[list[Any]], None],
) -> None:
    """Absolute and climbing paths, links, devices, duplicates, missing and surplus members, impossible sizes."""
    registry.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    bad = _rewritten(tmp_path / "b.tar", tmp_path / "bad.tar", change)
    home = site("hospital")
    with pytest.raises(SourceError):
        ModelRegistry().import_bundle(bad)
    assert _files(home) == {}
    assert ModelRegistry().import_bundle(tmp_path / "b.tar")


def test_a_flipped_byte_anywhere_is_noticed(
    registry: ModelRegistry, acme: LoopbackHub, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """In every 997th byte of the file, one at a time: an error, or, in the padding between members, no difference."""
    registry.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    content = (tmp_path / "b.tar").read_bytes()
    home = site("hospital")
    harmless = 0
    for position in range(0, len(content), 997):
        (tmp_path / "bad.tar").write_bytes(
            content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
        )
        try:
            ModelRegistry().import_bundle(tmp_path / "bad.tar")
        except MedVLLMError:
            assert _files(home) == {}
        else:
            harmless += 1
            assert ModelRegistry().load_model("acme/bert")
            for left in home.iterdir():
                subprocess.run(["rm", "-r", left], check=True)
    assert harmless < 30


def test_files_that_are_not_their_listings_are_refused(
    registry: ModelRegistry, acme: LoopbackHub, site: Callable[[str], Path], tmp_path: Path
) -> None:
    """A bundle that is consistent in itself, but whose weights are not those of the commit that it names."""
    registry.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    forged = b"x" * 1000
    digest = hashlib.sha256(forged).hexdigest()

    def change(members: list[Any]) -> None:
        old = next(i for i, (m, content) in enumerate(members) if b'"F32"' in content[:4000])
        was, size = members[old][0].name.removeprefix("blobs/"), len(members[old][1])
        members[old] = tarfile.TarInfo(f"blobs/{digest}"), forged
        _in_lock(f'size = {size}, sha256 = "{was}"', f'size = 1000, sha256 = "{digest}"')(members)
        row = {"name": f"blobs/{digest}", "size": 1000, "sha256": digest}
        _in_manifest(lambda m: m["members"].__setitem__(old - 1, row))(members)

    bad = _rewritten(tmp_path / "b.tar", tmp_path / "bad.tar", change)
    home = site("hospital")
    with pytest.raises(DigestMismatchError, match="not those of 'acme/bert' at .*: model.safetensors has 1,000 bytes"):
        ModelRegistry().import_bundle(bad)
    assert not (home / "medvllm.lock").exists() and not list((home / "hub").rglob("model.safetensors"))


def test_a_model_that_is_nowhere_cannot_be_exported(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """No file is left."""
    with pytest.raises(ModelNotFoundError):
        registry.export(tmp_path / "b.tar", "acme/none")
    with pytest.raises(OutputError, match="cannot be written"):
        registry.export(tmp_path / "absent" / "b.tar", "acme/bert")
    with pytest.raises(SourceError, match="cannot be read|cannot be imported"):
        registry.import_bundle(tmp_path / "b.tar")
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))


def _peak_mb(statement: str, **environment: str) -> float:
    # Not ru_maxrss: it begins at what the parent had.
    code = (
        "from medvllm.engine.model_runner import registry\n"
        f"{statement}\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout) / 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bundle_of_five_gigabytes_passes_in_bounded_memory(tmp_path: Path, home: Path) -> None:
    """Export and import need no more memory than for a tiny one: less than 200 MB for all of Python."""
    folder = tiny.bert_encoder(tmp_path / "large")
    tensor = {"dtype": "F32", "shape": [5 << 28], "data_offsets": [0, 5 << 30]}
    header = json.dumps({"w": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + (5 << 30))
    bundle = str(tmp_path / "b.tar")
    cache = {"HF_HUB_CACHE": str(home / "hub")}
    exported = _peak_mb(f"registry.export({bundle!r}, {str(folder)!r}, unlocked=True)", **cache)
    imported = _peak_mb(f"registry.import_bundle({bundle!r})", **cache, MEDVLLM_HOME=str(home / "other"))
    assert max(exported, imported) < 200
