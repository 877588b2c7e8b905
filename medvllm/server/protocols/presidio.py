"""Presidio: `/presidio/analyze` and `/presidio/anonymize`, for clients of its two services."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from medvllm.engine.model_runner.redaction.operators import Found, Operators
from medvllm.engine.model_runner.tagging.entities import EntityResults
from medvllm.engine.model_runner.tagging.tagged_text import read_labels
from medvllm.metadata import ModelMetadata
from medvllm.server.anonymizers import parse_anonymizers
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.named_model import Choice
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.tei import TEIRequest
from medvllm.server.texts import check_texts

router = APIRouter(prefix="/presidio", tags=["Presidio"], route_class=StrictRoute)


class AnalyzeRequest(BaseModel):
    """The texts in which to find what identifies a person. Unknown keys are ignored.

    Attributes:
        text: A text, or a list of texts.
        language: The language of the texts. If the entry states languages, it must be one of them.
        score_threshold: Entities with a lower score are left out.
        entities: The labels of the model to find; all by default.
        return_decision_process: Whether each result says what found it.
        ad_hoc_recognizers: Not supported: the model finds what it was trained for.
        allow_list: Not supported.
    """

    text: str | list[str]
    language: str | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    entities: list[str] | None = None
    return_decision_process: bool | None = None
    ad_hoc_recognizers: list[Any] | None = None
    allow_list: list[str] | None = None


class AnalyzerResult(BaseModel):
    """A part of the text to anonymize. Other keys are ignored."""

    start: Annotated[int, Field(ge=0, strict=True)]
    end: Annotated[int, Field(ge=0, strict=True)]
    score: float = 0.0
    entity_type: str


class AnonymizeRequest(BaseModel):
    """A text, and what to write over in it.

    Attributes:
        text: The text.
        analyzer_results: What `/presidio/analyze` returned for it.
        anonymizers: For a type of entity, or for "DEFAULT", the type of its operator and its options. Secrets are never
            sent: "key" is the name of a key of the server.
    """

    text: str
    analyzer_results: list[AnalyzerResult]
    anonymizers: dict[str, dict[str, Any]] = {}


@router.post("/analyze")
async def analyze(asked: AnalyzeRequest, http: Request, server: ServerOf, choice: Choice) -> Any:
    """Return what identifies a person in a text; of a list of texts, a list for each. Offsets count code points."""
    for name in ("ad_hoc_recognizers", "allow_list"):
        if getattr(asked, name):
            message = f"The model finds what it was trained for.\nLeave out: {name}"
            raise ProblemError(Problem(422, "unsupported_option", message, name))
    texts = [asked.text] if isinstance(asked.text, str) else asked.text
    check_texts(texts, server.config, "text")
    name = choice.name()

    def call() -> EntityResults:
        entry = server.entry(name)
        _check_language(entry, asked.language)
        options: dict[str, Any] = {"threshold": asked.score_threshold, "labels": asked.entities or None}
        options["long_input"] = TEIRequest().long_input(entry)
        results: EntityResults = server.runner(name).run("deid", texts, **options)
        return results

    found = await server.run(http, call)
    answers = [
        [
            {
                "entity_type": span.label,
                "start": span.start,
                "end": span.end,
                "score": span.score,
                "analysis_explanation": {"recognizer": name, "original_score": span.score, "score": span.score}
                if asked.return_decision_process
                else None,
                "recognition_metadata": {"recognizer_name": name, "recognizer_version": str(found.version)},
            }
            for span in entities.spans
        ]
        for entities in found
    ]
    return answers[0] if isinstance(asked.text, str) else answers


@router.post("/anonymize")
async def anonymize(asked: AnonymizeRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the text with the results written over. Results that overlap are written over as one."""
    check_texts([asked.text], server.config, "text")
    places = _join(asked.text, asked.analyzer_results)

    def call() -> dict[str, Any]:
        return _write(asked.text, places, parse_anonymizers(asked.anonymizers, server.config.redaction_keys))

    return await server.run(http, call)


@router.get("/supportedentities")
async def list_entities(http: Request, server: ServerOf, choice: Choice, language: str | None = None) -> list[str]:
    """Return the labels that the model can find."""
    name = choice.name()

    def call() -> list[str]:
        _check_language(server.entry(name), language)
        with server.registry.lease(server.reference(name)) as lease:
            return list(read_labels(lease).kinds)

    return await server.run(http, call)


@router.get("/recognizers")
async def list_recognizers(http: Request, server: ServerOf) -> list[str]:
    """Return the names of the models that find what identifies a person."""
    return await server.look(http, lambda: list(server.registry.list_models(task="deid")))


@router.get("/health", response_class=PlainTextResponse)
async def check_health() -> str:
    """Return that the service is there."""
    return "The service is up"


def _check_language(entry: ModelMetadata, language: str | None) -> None:
    """Raise ProblemError for a language that the entry does not state, if it states any."""
    stated = entry.intended_use.languages
    if language is not None and stated and language.casefold() not in map(str.casefold, stated):
        message = f"Model {entry.name!r} is for the languages {', '.join(stated)}, not {language[:20]!r}."
        raise ProblemError(Problem(422, "unsupported_language", message, "language"))


def _join(text: str, results: Sequence[AnalyzerResult]) -> list[AnalyzerResult]:
    """Return results in the order of the text. Those that overlap become one, with the label of the likeliest.

    Raises:
        ProblemError: A result is not in the text.
    """
    joined: list[AnalyzerResult] = []
    for number, result in enumerate(results):
        if not result.start < result.end <= len(text):
            param = f"analyzer_results.{number}"
            message = f"{param} is not in the text, which has {len(text):,} characters. Offsets count code points."
            raise ProblemError(Problem(422, "invalid_span", message, param))
    for result in sorted(results, key=lambda each: (each.start, -each.end)):
        if joined and result.start < joined[-1].end:
            last = joined[-1]
            likelier = max(last, result, key=lambda each: each.score)
            end = max(last.end, result.end)
            joined[-1] = AnalyzerResult(
                start=last.start, end=end, score=likelier.score, entity_type=likelier.entity_type
            )
        else:
            joined.append(result)
    return joined


def _write(text: str, places: Sequence[AnalyzerResult], operators: Operators) -> dict[str, Any]:
    """Return the text with its places written over, and what was written where."""
    found = [Found(text[place.start : place.end], place.entity_type, text) for place in places]
    parts: list[str] = []
    items: list[dict[str, Any]] = []
    length = end = 0
    with operators.prepared(found, {text: [text]}):
        for place, source in zip(places, found, strict=True):
            operator = operators.of(place.entity_type)
            new = operator.write(source)
            done = operator.type
            if new is None:  # such as a date that can be read in two ways
                new, done = f"<{place.entity_type}>", "replace"
            parts += [text[end : place.start], new]
            start = length + place.start - end
            length, end = start + len(new), place.end
            record = {"operator": done, "entity_type": place.entity_type, "start": start, "end": length, "text": new}
            items.append(record)
    return {"text": "".join([*parts, text[end:]]), "items": items}
