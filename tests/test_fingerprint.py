"""Every change of a model's folder is noticed, whatever file it is in and however it is made."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, MedVLLMError
from medvllm.options import LoadOptions
from tests.support import tiny

Change = Callable[[Path], None]


def _altered(file: Path) -> bytes:
    """Return other content of the same size: one bit of a byte in the middle differs."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def _write(file: Path) -> None:
    file.write_bytes(_altered(file))


def _append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\n")


def _set_mtime_back(file: Path) -> None:
    times = file.stat()
    file.write_bytes(_altered(file))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _rename_over(file: Path) -> None:
    times, other = file.stat(), file.with_name("new")
    other.write_bytes(_altered(file))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(file)


def _retarget_link(file: Path) -> None:
    times, other = file.stat(), file.resolve().with_name(f"{file.name}-other")
    other.write_bytes(_altered(file))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    file.unlink()
    file.symlink_to(other)


def _remove(file: Path) -> None:
    file.unlink()


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "bert": tiny.bert_masked_lm,
    "shards": lambda folder: tiny.bert_masked_lm(folder, weights="sharded"),
    "vocabulary": lambda folder: tiny.bert_masked_lm(folder, tokenizer_files="vocab_only"),
}
CHANGES: dict[str, Change] = {
    "content": _write,
    "size": _append,
    "mtime set back": _set_mtime_back,
    "replaced by rename": _rename_over,
    "link retargeted": _retarget_link,
    "removed": _remove,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each kind, which the tests copy."""
    root = tmp_path_factory.mktemp("folders")
    return {name: make(root / name) for name, make in FOLDERS.items()}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FOLDERS)
def test_every_change_of_every_file_gives_another_identity(
    registry: ModelRegistry, folders: dict[str, Path], tmp_path: Path, kind: str, change: str
) -> None:
    """Hits, reloads and tokenizers follow the fingerprint and the identity; the receipt lists the changed file."""
    resolve = registry.session.resolver.resolve
    names = resolve(folders[kind], LoadOptions()).snapshot.files
    for name in names:
        folder = tiny.copy(folders[kind], tmp_path / name / "m")
        if change == "link retargeted":
            store = tmp_path / name / "store" / name
            store.parent.mkdir()
            (folder / name).rename(store)
            (folder / name).symlink_to(store)
        before = resolve(folder, LoadOptions())
        assert before.fingerprint.is_current()
        CHANGES[change](folder / name)
        assert not before.fingerprint.is_current(), name
        with pytest.raises(DigestMismatchError) as changed:
            before.snapshot.check_unchanged()
        assert changed.value.files == (name,)
        try:
            after = resolve(folder, LoadOptions())
        except MedVLLMError:  # the change has damaged the file, or the model is incomplete without it
            continue
        assert after.identity != before.identity, name
        assert after.snapshot.content_digest != before.snapshot.content_digest, name
        assert after.snapshot.files.keys() == names.keys() - ({name} if change == "removed" else set())


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json", "generation_config.json"])
def test_a_file_that_is_added_gives_another_identity(
    registry: ModelRegistry, folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """A loader reads it where it exists, so that it is one of the model's files from then on."""
    resolve = registry.session.resolver.resolve
    folder = tiny.copy(folders["bert"], tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    before = resolve(folder, LoadOptions())
    assert before.fingerprint.is_current() and name not in before.snapshot.files
    (folder / name).write_text("{}")
    assert not before.fingerprint.is_current()
    after = resolve(folder, LoadOptions())
    assert name in after.snapshot.files and after.identity != before.identity
