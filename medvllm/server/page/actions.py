"""What a visitor can try with a model: each action is one request of the server's own protocols."""

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from medvllm.engine.model_runner.fill_mask import TOP_K
from medvllm.engine.model_runner.redaction.redact import THRESHOLD
from medvllm.metadata import ModelMetadata
from medvllm.server.context import Server
from medvllm.server.named_model import ModelChoice
from medvllm.server.page import client_calls
from medvllm.server.page.client_calls import ClientCall
from medvllm.server.page.form import Form
from medvllm.server.page.heat_map import similarities
from medvllm.server.page.highlight import cut, tints_of
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.medical.assertions import AssertionsRequest, find_assertions
from medvllm.server.protocols.medical.classify import ClassifyRequest, classify
from medvllm.server.protocols.medical.entities import EntitiesRequest, find_entities
from medvllm.server.protocols.medical.fill_mask import FillMaskRequest, fill_mask
from medvllm.server.protocols.medical.redact import RedactRequest, redact
from medvllm.server.protocols.openai.completions import create_chat_completion, create_completion
from medvllm.server.protocols.openai.embeddings import EmbeddingRequest, create_embeddings
from medvllm.server.protocols.openai.requests import ChatRequest, CompletionRequest
from medvllm.server.protocols.rerank import CohereRequest, rerank_documents

_MAX_SPANS = 1000
_MAX_SENTENCES = 40  # more squares than that nobody reads
_NOTHING: Mapping[str, str] = MappingProxyType({})
_SHORT = {"max_tokens": "128"}  # an answer that is soon complete


class Action(NamedTuple):
    """Something to try.

    Attributes:
        word: Its name in addresses and templates.
        title: Its name for people.
        route: The route that does it.
        body: Returns the body of the request from what the visitor wrote.
        request: The class of the body.
        answer: The route's function.
        client_call: Returns the call of `medvllm.client` for a body.
        describe: Returns what the template shows of an answer, from the body and the answer; None if the answer is
            sent piece by piece.
        defaults: What stands in a field that is empty.
    """

    word: str
    title: str
    route: str
    body: Callable[[Form], dict[str, Any]]
    request: type[BaseModel]
    answer: Callable[..., Awaitable[Any]]
    client_call: Callable[[Mapping[str, Any]], ClientCall]
    describe: Callable[[Mapping[str, Any], Any], dict[str, Any]] | None = None
    defaults: Mapping[str, str] = _NOTHING

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is sent piece by piece."""
        return self.describe is None

    async def ask(self, body: Mapping[str, Any], http: Request, server: Server) -> Any:
        """Return the answer to a request: its JSON values, or a stream.

        Raises:
            ValidationError: The body does not fit the route.
            ProblemError, MedVLLMError: As the route raises them.
        """
        asked = self.request.model_validate(body)
        more = (ModelChoice(http),) if self.request is CohereRequest else ()
        answer = await self.answer(asked, http, server, *more)
        return json.loads(bytes(answer.body)) if isinstance(answer, JSONResponse) else answer


def actions_of(entry: ModelMetadata) -> list[Action]:
    """Return what can be tried with an entry, the most likely first."""
    return [ACTIONS[word] for task in entry.tasks for word in _WORDS.get(task, ())]


def _entities_body(form: Form) -> dict[str, Any]:
    return {"input": _needed(form, "text"), "threshold": form.number("threshold")}


def _describe_entities(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    text, [record] = body["input"], answer["data"]
    spans = record["entities"]
    tints = tints_of(span["label"] for span in spans)
    counts = {label: sum(span["label"] == label for span in spans) for label in tints}
    parts = cut(text, spans, record["coverage"]["read"])
    found = _counted(len(spans), "entity", "entities")
    return {"text": text, "parts": parts, "tints": tints, "counts": counts, "record": record, "status": found}


def _redact_body(form: Form) -> dict[str, Any]:
    return {
        "input": _needed(form, "text"),
        "operators": {"DEFAULT": {"type": form.text("operator")}},
        "threshold": form.number("threshold"),
    }


def _describe_redaction(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    text, [record] = body["input"], answer["data"]
    items = record["items"]
    sources = [{**item, "start": item["source_start"], "end": item["source_end"]} for item in items]
    tints = tints_of(item["label"] for item in items)
    return {
        "before": cut(text, sources, record["coverage"]["read"]),
        "after": cut(record["text"], items),
        "says_labels": body["operators"]["DEFAULT"]["type"] == "replace",
        "tints": tints,
        "record": record,
        "status": _counted(len(items), "change"),
    }


def _classify_body(form: Form) -> dict[str, Any]:
    text, second = _needed(form, "text"), form.text("second")
    return {"input": [[text, second]] if second.strip() else text}


def _describe_classes(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    [record] = answer["data"]
    text = body["input"] if isinstance(body["input"], str) else body["input"][0][1]  # of a pair, the second may be cut
    return {
        "record": record,
        "parts": cut(text, (), record["coverage"]["read"]),
        "status": _counted(len(record["labels"]), "label"),
    }


def _assertions_body(form: Form) -> dict[str, Any]:
    text, phrase = _needed(form, "text"), _needed(form, "phrase").strip("\n")
    if text.count(phrase) > _MAX_SPANS:
        raise _invalid(f"The text has the words more than {_MAX_SPANS:,} times.", "phrase")
    spans, start = [], text.find(phrase)
    while start >= 0:
        spans.append({"start": start, "end": start + len(phrase)})
        start = text.find(phrase, start + len(phrase))
    if not spans:
        raise _invalid("The text does not have the words to judge, in the same spelling.", "phrase")
    return {"input": [{"text": text, "spans": spans}]}


def _describe_assertions(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    text, [record] = body["input"][0]["text"], answer["data"]
    judged = record["assertions"]
    tints = tints_of(each["label"] for each in judged)
    status = _counted(len(judged), "span")
    return {"parts": cut(text, judged), "tints": tints, "judged": judged, "record": record, "status": status}


def _gaps_body(form: Form) -> dict[str, Any]:
    return {"input": _needed(form, "text"), "top_k": form.count("top_k")}


def _describe_gaps(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    [record] = answer["data"]
    return {"record": record, "text": body["input"], "status": _counted(len(record["gaps"]), "gap")}


def _rank_body(form: Form) -> dict[str, Any]:
    documents = form.lines("documents")
    if not documents:
        raise _invalid("There is no document. Write one a line.", "documents")
    return {"query": _needed(form, "query"), "documents": documents}


def _describe_ranks(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    ranked = [
        {"place": each["index"] + 1, "text": body["documents"][each["index"]], "score": each["relevance_score"]}
        for each in answer["results"]
    ]
    return {"ranked": ranked, "status": _counted(len(ranked), "document")}


def _vectors_body(form: Form) -> dict[str, Any]:
    sentences = form.lines("sentences")
    if not 1 <= len(sentences) <= _MAX_SENTENCES:
        raise _invalid(f"Write 1 to {_MAX_SENTENCES} sentences, one a line; here are {len(sentences)}.", "sentences")
    return {"input": sentences}


def _describe_vectors(body: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    vectors = [record["embedding"] for record in answer["data"]]
    cut_off = [record["index"] + 1 for record in answer["data"] if record.get("truncated")]
    rows = list(zip(body["input"], similarities(vectors), strict=True))
    return {"rows": rows, "size": len(vectors[0]), "truncated": cut_off, "status": _counted(len(rows), "vector")}


def _chat_body(form: Form) -> dict[str, Any]:
    messages = [{"role": "user", "content": _needed(form, "text")}]
    return {"messages": messages, "max_tokens": form.count("max_tokens")}


def _completion_body(form: Form) -> dict[str, Any]:
    return {"prompt": _needed(form, "text"), "max_tokens": form.count("max_tokens")}


def _needed(form: Form, name: str) -> str:
    if not (text := form.text(name)).strip():
        raise _invalid("It is empty. Write a text first.", name)
    return text


def _invalid(message: str, param: str) -> ProblemError:
    return ProblemError(Problem(422, "invalid_request", message, param))


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


# Which actions a task has.
_WORDS = {
    "ner": ("entities",),
    "deid": ("redact", "entities"),
    "classify": ("classify",),
    "assertions": ("assertions",),
    "fill-mask": ("fill-mask",),
    "rerank": ("rerank",),
    "embed": ("embed",),
    "generate": ("chat", "complete"),
}
ACTIONS = {
    action.word: action
    for action in (
        Action(
            "entities",
            "Find entities",
            "/v1/entities",
            _entities_body,
            EntitiesRequest,
            find_entities,
            client_calls.entities_call,
            _describe_entities,
            {"threshold": "0"},
        ),
        Action(
            "redact",
            "Redact",
            "/v1/redact",
            _redact_body,
            RedactRequest,
            redact,
            client_calls.redact_call,
            _describe_redaction,
            {"operator": "replace", "threshold": str(THRESHOLD)},
        ),
        Action(
            "classify",
            "Classify",
            "/v1/classify",
            _classify_body,
            ClassifyRequest,
            classify,
            client_calls.classify_call,
            _describe_classes,
        ),
        Action(
            "assertions",
            "Judge assertions",
            "/v1/assertions",
            _assertions_body,
            AssertionsRequest,
            find_assertions,
            client_calls.assertions_call,
            _describe_assertions,
        ),
        Action(
            "fill-mask",
            "Fill gaps",
            "/v1/fill-mask",
            _gaps_body,
            FillMaskRequest,
            fill_mask,
            client_calls.fill_mask_call,
            _describe_gaps,
            {"top_k": str(TOP_K)},
        ),
        Action(
            "rerank",
            "Rank",
            "/v1/rerank",
            _rank_body,
            CohereRequest,
            rerank_documents,
            client_calls.rerank_call,
            _describe_ranks,
        ),
        Action(
            "embed",
            "Compare",
            "/v1/embeddings",
            _vectors_body,
            EmbeddingRequest,
            create_embeddings,
            client_calls.embed_call,
            _describe_vectors,
        ),
        Action(
            "chat",
            "Ask",
            "/v1/chat/completions",
            _chat_body,
            ChatRequest,
            create_chat_completion,
            client_calls.chat_call,
            defaults=_SHORT,
        ),
        Action(
            "complete",
            "Continue",
            "/v1/completions",
            _completion_body,
            CompletionRequest,
            create_completion,
            client_calls.completion_call,
            defaults=_SHORT,
        ),
    )
}
