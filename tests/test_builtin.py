"""The built-in medical models: each fact witnessed, and each entry loads what its repository's shape would spoil."""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from medvllm.catalog import builtin
from medvllm.catalog.builtin import parse_builtin
from medvllm.engine.model_runner import ModelMetadata, ModelRegistry, ModelRunner
from medvllm.errors import WeightsMismatchError
from medvllm.word_patterns import check_word_pattern, find_words
from tests.support import standins
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread
from tests.support.standins import STANDINS, one_of_each

ENTRIES: dict[str, ModelMetadata] = ModelRegistry().list_models()

# Entry -> labels, in the order of their class ids; those of an entry win over those of a config that names none.
LABELS = {
    "d4data/biomedical-ner-all": standins.NER,
    "samrawal/bert-base-uncased_clinical-ner": standins.CLINICAL_NER,
    "StanfordAIMI/stanford-deidentifier-base": ["O", *standins.PHI],
    "obi/deid_roberta_i2b2": standins.BILOU,
    "obi/deid_bert_i2b2": standins.BILOU,
    "bvanaken/clinical-assertion-negation-bert": ["PRESENT", "ABSENT", "POSSIBLE"],
    "pritamdeka/PubMedBERT-MNLI-MedNLI": ["contradiction", "entailment", "neutral"],
}
HEADS = ("cls.", "lm_head.", "head.", "decoder.", "classifier.")  # of the classes that are there


def _served(hub: LoopbackHub, folder: Path, name: str, **trouble: Any) -> None:
    metadata = ENTRIES[name]
    hub.add(metadata.location, convert(STANDINS[name](folder, **trouble)), commit=metadata.source.revision)


def test_every_entry_has_a_stand_in() -> None:
    """None is left untried."""
    assert set(STANDINS) == set(ENTRIES) and len(ENTRIES) >= 42


@pytest.mark.parametrize("name", spread(ENTRIES, 3))
def test_an_entry_makes_its_repository_load_as_its_authors_meant(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    """By name alone: class, casing, length, pooling and label map are right, whatever the files say or leave out."""
    behaviour = ENTRIES[name].behaviour
    _served(hub, tmp_path / "m", name)
    with registry.lease(name) as lease:
        assert lease.receipt.origin == "built-in"
        model_class: Any = lease.metadata.model_class
        assert isinstance(lease.model, model_class._model_mapping[type(lease.model.config)])
        tokenizer = lease.tokenizer
        # Where the entry does not know, the repository's own files do.
        lowercases = behaviour.do_lower_case
        if lowercases is None:
            lowercases = bool(getattr(STANDINS[name], "keywords", {}).get("do_lower_case"))
        assert (tokenizer.tokenize("ALS") == tokenizer.tokenize("als")) is lowercases
        if behaviour.max_length is not None:
            assert tokenizer.model_max_length == behaviour.max_length
        assert tokenizer.model_max_length <= 131_072
        if name in LABELS:
            assert list(lease.model.config.id2label.values()) == LABELS[name]
        if "embed" in lease.metadata.tasks:
            pair = ("Fever", "Patient denies fever.") if len(behaviour.inputs) == 2 else None
            inputs = tokenizer(*(pair or ["Patient denies fever."]), return_tensors="pt")
            with torch.inference_mode():
                hidden = lease.model.base_model(**inputs).last_hidden_state[0]
            expected = hidden[0] if behaviour.pooling == "cls" else hidden.mean(0)
            vectors = ModelRunner(name, registry=registry).embed([pair or "Patient denies fever."]).vectors
            assert np.allclose(vectors[0], expected, atol=1e-5)
        if behaviour.task == "fill-mask":
            [[fills]] = ModelRunner(name, registry=registry).run(None, ["Patient denies [MASK]."])
            assert len(fills) == 5 and fills[0].score >= fills[1].score > 0


@pytest.mark.parametrize(
    "name", spread([name for name, entry in ENTRIES.items() if entry.behaviour.task in ("ner", "deid")], 2)
)
def test_a_tagger_runs_by_name(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    """With the words that it was trained on, and its labels' own scheme."""
    _served(hub, tmp_path / "m", name)
    text = "Seen by Dr. Peña on 10/12/2080 for fever."
    runner = ModelRunner(name, registry=registry)
    (found,) = runner.run(None, [text])
    assert found.coverage.read == ((0, len(text)),) and found.coverage.tokens > 10
    assert all(span.text == text[span.start : span.end] for span in found.spans)
    assert not any(span.label[:2] in ("B-", "I-", "L-", "U-") for span in found.spans)


@pytest.mark.parametrize("name", ["obi/deid_roberta_i2b2", "obi/deid_bert_i2b2"])
def test_words_are_split_as_the_model_was_trained(name: str) -> None:
    """Dates and numbers are one word, so that their first piece decides for all of it; signs stand alone."""
    text = "Dr.O'Brien's pt (MRN:AB1234) seen 10/12/2080 10:30, call 617-555-1234; José 3.5mg"
    pattern = ENTRIES[name].behaviour.word_pattern
    check_word_pattern(name, pattern)
    words = [text[start:end] for start, end in find_words(text, pattern or "", 0)]
    expected = "Dr . O'Brien 's pt ( MRN : AB1234 ) seen 10/12/2080 10:30 , call 617-555-1234 ; José 3.5 mg"
    assert words == expected.split()


@pytest.mark.parametrize(
    "name", spread(one_of_each(name for name, entry in ENTRIES.items() if entry.behaviour.task != "embed"), 3)
)
def test_without_its_head_an_entry_is_refused(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    """Never a random one. A head that is tied to the embeddings has no weights of its own that could be absent."""
    _served(hub, tmp_path / "m", name, drop=HEADS, weights="safetensors")
    if name in ("microsoft/biogpt", "stanford-crfm/BioMedLM", "google/medgemma-27b-text-it"):
        model: Any = registry.load_model(name)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    else:
        with pytest.raises(WeightsMismatchError, match=f"The checkpoint of {name!r} lacks .*partly random"):
            registry.load_model(name)


CLASSIFIERS = [name for name, entry in ENTRIES.items() if entry.behaviour.task in ("classify", "assertions", "rerank")]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_runs_by_name(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    """With the labels and the kind of score that its entry states."""
    _served(hub, tmp_path / "m", name)
    runner = ModelRunner(name, registry=registry)
    if runner.task == "rerank":
        ranked = runner.rerank("the dose", ["aspirin", "no history of diabetes"])
        with registry.lease(name) as lease, torch.inference_mode():
            pairs = lease.tokenizer(
                ["the dose"] * 2, ["aspirin", "no history of diabetes"], padding=True, return_tensors="pt"
            )
            logits = lease.model(**pairs).logits[:, 0].tolist()
        assert {each.index: each.score for each in ranked} == pytest.approx(dict(enumerate(logits)), abs=1e-6)
    else:
        if runner.task == "assertions":
            [[assertion]] = runner.assertions(["Patient denies fever."], [[(15, 20)]])
            [found] = runner.classify(["Patient denies [entity] fever [entity]."])
            assert assertion.scores == pytest.approx({each.label: each.score for each in found}, abs=1e-6)
        else:
            [found] = runner.classify([["No fever.", "fever"]])
        assert {each.label for each in found} == set(LABELS[name])
        assert sum(each.score for each in found) == pytest.approx(1)


def test_the_facts_are_all_witnessed() -> None:
    """Every behavioural or legal fact says how it is known; only a commit that was seen is pinned."""
    stated = {"description", "tags", "model_class", "config_class", "also_known_as", "model_path"}
    ours = {"long_input", "intended_use", "languages", "license_status"}  # our words or choice, not facts of theirs
    computed = {"name", "version", "origin", "model_type", "tasks", "provenance"}
    for metadata in ENTRIES.values():
        known = {fact for fact, value in metadata.to_dict().items() if value not in (None, [], {}, "")}
        witnessed = set(metadata.provenance)
        assert known - stated - ours - computed <= witnessed <= known
        assert all(text.startswith(("seen: ", "verified: ", "likely: ")) for text in metadata.provenance.values())
        if revision := metadata.source.revision:
            assert re.fullmatch("[0-9a-f]{40}", revision) and metadata.provenance["revision"].startswith("seen: ")


def test_the_file_keeps_to_its_schema() -> None:
    """As editors check it; a misspelt fact or a wrong value does not."""
    catalog = files("medvllm.catalog")
    content = tomllib.loads(catalog.joinpath("builtin.toml").read_text(encoding="utf-8"))
    validator: Any = Draft202012Validator(json.loads(catalog.joinpath("entries.schema.json").read_text()))
    assert [error.message for error in validator.iter_errors(content)] == []
    for wrong in ({"licence": "mit"}, {"pooling": "sum"}, {"max_length": 0}, {"model_class": "BertModel"}):
        assert not validator.is_valid({"models": {"m": {"model_type": "generic", **wrong}}})


def test_an_entry_states_what_a_user_must_know() -> None:
    """Task, class, architecture, what becomes of long texts, what it is for; and its rights, or that they are open."""
    for metadata in ENTRIES.values():
        behaviour, rights = metadata.behaviour, metadata.license
        assert behaviour.task and behaviour.architecture and behaviour.long_input and metadata.class_paths[0]
        assert metadata.intended_use.intended_use and metadata.intended_use.languages
        assert rights.license_status and rights.gated is not None
        assert rights.license or rights.license_status != "declared"
        if behaviour.counterpart:
            assert ENTRIES[behaviour.counterpart].behaviour.counterpart == metadata.name
    for name in ("stanford-crfm/BioMedLM", "epfl-llm/meditron-7b", "BioMistral/BioMistral-7B", "microsoft/biogpt"):
        assert ENTRIES[name].license.use_restrictions


def test_no_two_entries_share_a_name() -> None:
    """Nor an alias; and none is ambiguous: several models are called ClinicalBERT."""
    names = [*ENTRIES, *(alias for entry in ENTRIES.values() for alias in entry.source.also_known_as)]
    folded = [name.casefold() for name in names]
    assert len(set(folded)) == len(folded) and "clinicalbert" not in folded


def test_a_former_name_leads_to_the_same_entry(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> None:
    """PubMedBERT was renamed: also written as hf://, and the bytes are the same."""
    old = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
    entry = registry.get_metadata(old)
    assert entry.name == registry.get_metadata(f"hf://{old}").name
    _served(hub, tmp_path / "m", entry.name)
    assert registry.load_model(old) is registry.load_model(entry.name)
    assert hub.requests(old) == []


@pytest.mark.parametrize("name", ["michiyasunaga/BioLinkBERT-base", "cambridgeltl/SapBERT-from-PubMedBERT-fulltext"])
def test_an_encoder_fills_no_masks(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    """Its masked-LM head was never there, whatever the Hub's tags say."""
    _served(hub, tmp_path / "m", name)
    with pytest.raises(WeightsMismatchError, match="lacks cls.predictions"):
        registry.load_model(name, model_class="transformers:AutoModelForMaskedLM")


def test_an_edited_table_is_read_itself() -> None:
    """The faster form of it, which `make docs` writes, holds for that text alone."""
    text = Path(builtin.__file__).with_name("builtin.toml").read_text(encoding="utf-8")
    assert parse_builtin(text) == tomllib.loads(text)
    edited = text + '\n[models.added]\nmodel_type = "generic"\n'
    assert parse_builtin(edited)["models"]["added"] == {"model_type": "generic"}
