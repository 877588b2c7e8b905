"""Tasks by other words: one table for the runner, corpora, the command line, entries and listings."""

import pytest

from medvllm.corpora.rows import Row
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.corpus_run import CorpusRun
from medvllm.errors import RequestError
from medvllm.words import known_task
from tests.support.console import command

WORDS = [
    *((word, "redact") for word in ("redact", "Redact", " REDACT ", "redaction", "re-daction")),
    *((word, "deid") for word in ("de-identify", "deidentify", "De-Identification", "DEID", "de_id")),
    *((word, "ner") for word in ("NER", "N.E.R.", "Token Classification", "tokenClassification", "entities")),
    *((word, "embed") for word in ("Embeddings", "EMBED", "sentence_embeddings", "feature extraction")),
    *((word, "fill-mask") for word in ("FillMask", "fill_mask", "fillmask", "Fill\u2011Mask", "MLM")),
    *((word, "classify") for word in ("Text-Classification", "classification", "NLI")),
    *((word, "assertions") for word in ("Assertion", "negation detection")),
    *((word, "rerank") for word in ("re-rank", "ReRanking", "Cross-Encoder")),
    *((word, "generate") for word in ("TextGeneration", "text2text-generation", "Generation")),
]


@pytest.mark.parametrize(("word", "task"), WORDS)
def test_a_task_has_many_spellings(registry: ModelRegistry, word: str, task: str) -> None:
    """Each means one task, wherever it is written."""
    refusal = f"Task '{task}' takes no argument 'topic'"
    with pytest.raises(RequestError, match=refusal):
        ModelRunner("acme/not-there", registry=registry).run(word, ["x"], topic="")
    with pytest.raises(RequestError, match=refusal):
        list(
            CorpusRun(
                "acme/not-there",
                [Row("x", "line 1", extra={"spans": []})],
                word,
                arguments={"topic": ""},
                registry=registry,
            )
        )
    registry.register("m", "clinical", task=word)
    stated = "deid" if task == "redact" else task  # a model that redacts is a de-identifier
    assert registry.get_metadata("m").tasks == (stated,)
    assert "m" in registry.list_models(task=word)


def test_the_command_line_knows_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are those of the task that is meant."""
    done = command(monkeypatch, "run", "acme/not-there", "x", "--task", "Redaction", "--top-k", "3")
    assert done.code == 2 and "task 'redact' takes no --top-k" in " ".join(done.err.replace("│", " ").split())
    done = command(monkeypatch, "run", "acme/not-there", "x", "--task", "De Identify", "--query", "y")
    assert done.code == 2 and "task 'deid' takes no --query" in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize("word", ["summarization", "question-answering", "icd-coding", "search", "chat"])
def test_a_word_of_ones_own_stays(word: str) -> None:
    assert known_task(word) == word
