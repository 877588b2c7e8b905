"""Receipts: what exactly answered, under keys that stay; what the bytes prove stands apart from what a card says."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from tests.support import tiny
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub


def _receipt(registry: ModelRegistry, name: Any, **options: Any) -> dict[str, Any]:
    with registry.lease(name, **options) as lease:
        found: dict[str, Any] = json.loads(json.dumps(lease.receipt.to_dict()))
    return found


def test_a_receipt_has_stable_keys(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> None:
    """Everything that the issue of a result may ask for."""
    commit = hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "m"))
    receipt = _receipt(registry, "acme/bert")
    assert list(receipt) == [
        *("format", "name", "version", "origin", "snapshot", "verified", "declared", "options", "libraries")
    ]
    assert list(receipt["verified"]) == [
        *("digest", "commit", "files", "converted", "locked", "changed", "architecture", "dtype", "size_bytes"),
        *("tokenizer_sha256", "labels_sha256"),
    ]
    assert (receipt["format"], receipt["snapshot"]) == (1, f"acme/bert@{commit}")
    assert (receipt["verified"]["commit"], receipt["verified"]["architecture"]) == (commit, "bert")
    assert (receipt["options"]["dtype"], receipt["options"]["device"]) == ("float32", "cpu")
    assert set(receipt["libraries"]) >= {"medvllm", "torch", "transformers", "tokenizers", "safetensors"}


def test_every_file_is_told_by_its_digest(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> None:
    """Of the pickle and of what was made of it; one digest stands for all."""
    folder = convert(tiny.bert_masked_lm(tmp_path / "m", weights="bin"))
    hub.add("acme/bin", folder)
    verified = _receipt(registry, "acme/bin")["verified"]
    for name, digest in verified["files"].items():
        content = (folder / name).read_bytes()
        assert digest == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert "pytorch_model.bin" in verified["files"] and "model.safetensors" in verified["converted"]
    rows = sorted(
        [*verified["files"].items(), *verified["converted"].items()], key=lambda row: (row[0], row[1]["sha256"])
    )
    lines = "".join(f"{digest['sha256']}  {digest['size']}  {name}\n" for name, digest in rows)
    assert verified["digest"] == hashlib.sha256(lines.encode()).hexdigest()


def test_declared_facts_carry_where_they_were_seen(registry: ModelRegistry, tmp_path: Path) -> None:
    """A licence is somebody's word; it is never among what is verified."""
    facts = {
        "license": "mit",
        "data_restrictions": ["MIMIC-III DUA"],
        "provenance": {"license": "likely: the uploader's tag"},
    }
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    registry.register("m", "clinical", model_path=folder, do_lower_case=False, **facts)  # type: ignore[arg-type]
    receipt = _receipt(registry, "m")
    assert receipt["declared"]["license"] == {"value": "mit", "provenance": "likely: the uploader's tag"}
    assert receipt["declared"]["data_restrictions"] == {"value": ["MIMIC-III DUA"], "provenance": None}
    assert receipt["declared"]["do_lower_case"]["value"] is False
    assert "license" not in receipt["verified"]


def test_equal_models_have_equal_receipts_and_others_differ(registry: ModelRegistry, tmp_path: Path) -> None:
    """The tokenizer's digest is that of how it works, casing and length included, whatever it did before."""
    folder = str(tiny.bert_encoder(tmp_path / "m", tokenizer_files="vocab_only"))
    registry.register("cased", "clinical", model_path=folder, do_lower_case=False)
    registry.register("uncased", "clinical", model_path=folder, do_lower_case=True)
    registry.register("short", "clinical", model_path=folder, max_length=9)
    cased = _receipt(registry, "cased")
    registry.load_tokenizer("cased")("fever " * 99, truncation=True, max_length=5, padding="max_length")
    assert _receipt(registry, "cased") == cased
    registry.clear_cache()
    registry.load_tokenizer("cased")("fever " * 99, truncation=True, max_length=5, padding="max_length")
    assert _receipt(registry, "cased") == cased
    digests = {_receipt(registry, name)["verified"]["tokenizer_sha256"] for name in ("cased", "uncased", "short")}
    assert len(digests) == 3
    assert {_receipt(registry, name)["verified"]["digest"] for name in ("cased", "uncased")} == {
        cased["verified"]["digest"]
    }


def test_labels_are_told_by_their_digest(registry: ModelRegistry, tmp_path: Path) -> None:
    """The same labels in another order are another label map; a model without named labels has none."""
    orders = (["O", "B-X", "I-X"], ["O", "I-X", "B-X"])
    folders = [tiny.bert_token_classifier(tmp_path / str(i), labels) for i, labels in enumerate(orders)]
    digests = {_receipt(registry, folder)["verified"]["labels_sha256"] for folder in folders}
    assert len(digests) == 2 and None not in digests
    assert _receipt(registry, tiny.bert_encoder(tmp_path / "m"))["verified"]["labels_sha256"] is None


def test_a_receipt_says_whether_the_lock_approved(registry: ModelRegistry, tmp_path: Path) -> None:
    """At the load: what was locked afterwards was not checked by it."""
    folder = tiny.bert_encoder(tmp_path / "m")
    assert _receipt(registry, folder)["verified"]["locked"] is False
    registry.lock(folder)
    registry.clear_cache()
    assert _receipt(registry, folder)["verified"]["locked"] is True


@pytest.mark.parametrize("files", ["none", "full"])
def test_a_model_without_a_tokenizer_has_a_receipt(registry: ModelRegistry, tmp_path: Path, files: Any) -> None:
    """Its digest is then null."""
    folder = tiny.bert_encoder(tmp_path / "m", tokenizer_files=files)
    assert (_receipt(registry, folder)["verified"]["tokenizer_sha256"] is None) is (files == "none")
