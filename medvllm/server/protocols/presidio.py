"""Presidio: `/presidio/analyze`, `/anonymize` and `/deanonymize`, for clients of its two services."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner.redaction.operators import DEFAULT, Found, Keep, Operator, Operators
from medvllm.engine.model_runner.tagging.entities import EntityResults
from medvllm.engine.model_runner.tagging.spans import Span
from medvllm.engine.model_runner.tagging.tagged_text import read_labels
from medvllm.metadata import ModelMetadata
from medvllm.server.anonymizers import Label, PartMask, parse_anonymizers, parse_deanonymizers
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.encryption import Encrypt
from medvllm.server.examples import answer_of
from medvllm.server.named_model import Choice
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.tei import TEIRequest
from medvllm.server.served_runner import VERSION
from medvllm.server.texts import TolerantModel, check_texts

router = APIRouter(prefix="/presidio", tags=["Presidio"], route_class=StrictRoute)

_FOUND = {
    "entity_type": "NAME",
    "start": 12,
    "end": 16,
    "score": 0.98,
    "analysis_explanation": None,
    "recognition_metadata": {"recognizer_name": "my-deid", "recognizer_version": "3"},
}
_EXPLAINED = {**_FOUND, "analysis_explanation": {"recognizer": "my-deid", "original_score": 0.98, "score": 0.98}}
_WRITTEN = {
    "text": "Seen by Dr. <NAME>.",
    "items": [{"operator": "replace", "entity_type": "NAME", "start": 12, "end": 18, "text": "<NAME>"}],
}
_READ = {
    "text": "Seen by Dr. Peña.",
    "items": [{"operator": "decrypt", "entity_type": "NAME", "start": 12, "end": 16, "text": "Peña"}],
}

# The operators that may leave letters of a text.
_LEAVE = (Keep, PartMask)


class AnalyzeRequest(TolerantModel):
    """The texts in which to find what identifies a person. Unknown keys are ignored.

    Attributes:
        text: A text, or a list of texts.
        language: The language of the texts. If the entry states languages, it must be one of them.
        score_threshold: Entities with a lower score are left out.
        entities: The labels of the model to find; all by default.
        return_decision_process: Whether each result says what found it.
        ad_hoc_recognizers: Not supported: the model finds what it was trained for.
        allow_list: Not supported.
        context: Not supported: the model reads the words around an entity, and no list of them.
        model: A name of the catalogue. The protocol has none: the address, a header or the server's only model tells.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-deid", "text": "Seen by Dr. Peña.", "language": "en"}}
    )

    text: str | list[str]
    language: str | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    entities: list[str] | None = None
    return_decision_process: bool | None = None
    ad_hoc_recognizers: list[Any] | None = None
    allow_list: list[str] | None = None
    context: list[str] | None = None
    model: str | None = None


class AnalyzerResult(TolerantModel):
    """A part of the text to anonymize. Other keys are ignored."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    score: float = 0.0
    entity_type: str


class AnonymizeRequest(TolerantModel):
    """A text, and what to write over in it.

    Attributes:
        text: The text.
        analyzer_results: What `/presidio/analyze` returned for it.
        anonymizers: For a type of entity, or for "DEFAULT", the type of its operator and its options. Secrets are never
            sent: "key" is the name of a key of the server.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "text": "Seen by Dr. Peña.",
                "analyzer_results": [{"start": 12, "end": 16, "score": 0.98, "entity_type": "NAME"}],
                "anonymizers": {"DEFAULT": {"type": "replace"}},
            }
        }
    )

    text: str
    analyzer_results: list[AnalyzerResult]
    anonymizers: dict[str, dict[str, Any]] | None = None


class Anonymized(TolerantModel):
    """A part of an anonymized text. Other keys are ignored."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    entity_type: str


class DeanonymizeRequest(TolerantModel):
    """An anonymized text, and what to read back in it.

    Attributes:
        text: The text.
        anonymizer_results: The items that `/presidio/anonymize` returned for it.
        deanonymizers: For a type of entity, or for "DEFAULT": "decrypt" with a "key", which is the name of a key of the
            server, or "deanonymize_keep".
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "text": "Seen by Dr. Peña.",
                "anonymizer_results": [{"start": 12, "end": 16, "entity_type": "NAME", "operator": "keep"}],
                "deanonymizers": {"DEFAULT": {"type": "deanonymize_keep"}},
            }
        }
    )

    text: str
    anonymizer_results: list[Anonymized]
    deanonymizers: dict[str, dict[str, Any]]


@router.post(
    "/analyze", response_class=JSONResponse, responses={200: answer_of([_FOUND, _EXPLAINED], [[_FOUND, _EXPLAINED]])}
)
async def analyze(asked: AnalyzeRequest, http: Request, server: ServerOf, choice: Choice) -> Response:
    """Return what identifies a person in a text; of a list of texts, a list for each. Offsets count code points."""
    for name in ("ad_hoc_recognizers", "allow_list", "context"):
        if getattr(asked, name):
            message = f"The model finds what it was trained for.\nLeave out: {name}"
            raise ProblemError(Problem(422, "unsupported_option", message, name))
    texts = [asked.text] if isinstance(asked.text, str) else asked.text
    check_texts(texts, server.config, "text")
    name = choice.name(asked.model)

    def call() -> Response:  # all of it, as the answer may be large
        entry = server.entry(name)
        _check_language(entry, asked.language)
        options: dict[str, Any] = {"threshold": asked.score_threshold or 0.0, "labels": asked.entities or None}
        options["long_input"] = TEIRequest().long_input(entry)
        found: EntityResults = server.runner(entry.reference).run("deid", texts, **options)
        recognizer = {"recognizer_name": name, "recognizer_version": str(found.version)}
        answers = [[_describe(span, recognizer, asked) for span in entities.spans] for entities in found]
        return JSONResponse(answers[0] if isinstance(asked.text, str) else answers)

    return await server.run(http, call)


@router.post("/anonymize", responses={200: answer_of(_WRITTEN)})
async def anonymize(asked: AnonymizeRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the text with the results written over. Results that overlap are written over as one."""
    check_texts([asked.text], server.config, "text")
    _check_places(asked.text, asked.analyzer_results, "analyzer_results")

    def call() -> dict[str, Any]:
        operators = parse_anonymizers(asked.anonymizers or {}, server.config.redaction_keys)
        return _write(asked.text, _join(asked.analyzer_results, operators), operators)

    return await server.run(http, call)


@router.post("/deanonymize", responses={200: answer_of(_READ)})
async def deanonymize(asked: DeanonymizeRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the text in which what `encrypt` wrote is readable again. A key needs the right to manage for it."""
    check_texts([asked.text], server.config, "text")
    places = sorted(asked.anonymizer_results, key=lambda each: each.start)
    _check_places(asked.text, asked.anonymizer_results, "anonymizer_results")
    if any(last.end > place.start for last, place in pairwise(places)):
        message = "Two of anonymizer_results overlap, so they are not those of one text."
        raise ProblemError(Problem(422, "invalid_span", message, "anonymizer_results"))

    def call() -> dict[str, Any]:
        return _read_back(asked.text, places, parse_deanonymizers(asked.deanonymizers, server.config.redaction_keys))

    return await server.run(http, call)


@router.get("/supportedentities", responses={200: answer_of(["NAME", "DATE"])})
async def list_entities(http: Request, server: ServerOf, choice: Choice, language: str | None = None) -> list[str]:
    """Return the labels that the model can find."""
    name = choice.name()

    def call() -> list[str]:
        entry = server.entry(name)
        _check_language(entry, language)
        with server.lease(entry.reference) as lease:
            server.about[VERSION] = str(lease.metadata.version)
            return list(read_labels(lease).kinds)

    return await server.run(http, call)


@router.get("/recognizers", responses={200: answer_of(["my-deid"])})
async def list_recognizers(http: Request, server: ServerOf) -> list[str]:
    """Return the names of the models that find what identifies a person."""
    return await server.look(http, lambda: list(server.registry.list_models(task="deid")))


@router.get("/health", response_class=PlainTextResponse)
async def check_health() -> str:
    """Return that the service is there."""
    return "The service is up"


def _describe(span: Span, recognizer: Mapping[str, str], asked: AnalyzeRequest) -> dict[str, Any]:
    explanation = {"recognizer": recognizer["recognizer_name"], "original_score": span.score, "score": span.score}
    return {
        "entity_type": span.label,
        "start": span.start,
        "end": span.end,
        "score": span.score,
        "analysis_explanation": explanation if asked.return_decision_process else None,
        "recognition_metadata": recognizer,
    }


def _check_language(entry: ModelMetadata, language: str | None) -> None:
    """Raise ProblemError for a language that the entry does not state, if it states any."""
    stated = entry.intended_use.languages
    if language is not None and stated and language.casefold() not in map(str.casefold, stated):
        message = f"Model {entry.name!r} is for the languages {', '.join(stated)}, not {language[:20]!r}."
        raise ProblemError(Problem(422, "unsupported_language", message, "language"))


def _check_places(text: str, results: Sequence[AnalyzerResult | Anonymized], name: str) -> None:
    """Raise ProblemError if a result is not in the text."""
    for number, result in enumerate(results):
        if not result.start < result.end <= len(text):
            param = f"{name}.{number}"
            message = f"{param} is not in the text, which has {len(text):,} characters. Offsets count code points."
            raise ProblemError(Problem(422, "invalid_span", message, param))


def _join(results: Sequence[AnalyzerResult], operators: Operators) -> list[tuple[AnalyzerResult, Operator]]:
    """Return results in the order of the text, each with its operator.

    Those that overlap become one, with the label and the operator of the likeliest. If the operator of one of them
    leaves letters of the text, all of it is replaced: they may be what the other one is to write over.
    """
    joined: list[tuple[AnalyzerResult, Operator]] = []
    for result in sorted(results, key=lambda each: (each.start, -each.end)):
        own = operators.of(result.entity_type)
        if not joined or result.start >= joined[-1][0].end:
            joined.append((result, own))
            continue
        last, before = joined[-1]
        likelier = max(last, result, key=lambda each: each.score)
        end = max(last.end, result.end)
        is_same = before == own and (not isinstance(own, PartMask) or (last.start, last.end) == (result.start, end))
        operator = before if likelier is last else own
        if not is_same and (isinstance(before, _LEAVE) or isinstance(own, _LEAVE)):
            operator = Label()
        both = AnalyzerResult(start=last.start, end=end, score=likelier.score, entity_type=likelier.entity_type)
        joined[-1] = (both, operator)
    return joined


def _write(text: str, joined: Sequence[tuple[AnalyzerResult, Operator]], operators: Operators) -> dict[str, Any]:
    """Return the text with its places written over, and what was written where."""
    places = [place for place, _ in joined]
    found = [Found(text[place.start : place.end], place.entity_type, text) for place in places]
    written: list[tuple[str, str]] = []
    with operators.prepared(found, {text: [text]}):
        for (place, operator), source in zip(joined, found, strict=True):
            new = operator.write(source)
            # None is, for example, for a date that can be read in two ways.
            written.append((f"<{place.entity_type}>", "replace") if new is None else (new, operator.type))
    return _replace(text, places, written)


def _read_back(text: str, places: Sequence[Anonymized], deanonymizers: Mapping[str, Encrypt | None]) -> dict[str, Any]:
    """Return the text with its places readable again, and what was read where."""
    written: list[tuple[str, str]] = []
    for place in places:
        label = place.entity_type if place.entity_type in deanonymizers else DEFAULT
        if label not in deanonymizers:
            message = (
                f"deanonymizers says nothing of {place.entity_type[:50]!r}.\n"
                'Add: "DEFAULT": {"type": "deanonymize_keep"}'
            )
            raise ProblemError(Problem(422, "invalid_request", message, "deanonymizers"))
        source, chosen = text[place.start : place.end], deanonymizers[label]
        new = source if chosen is None else chosen.read(source)
        if new is None:
            message = (
                f"The text from {place.start} to {place.end} was not written by encrypt with this key.\n"
                "Is it the key, and are the offsets those of the items of /presidio/anonymize?"
            )
            raise ProblemError(Problem(422, "not_decrypted", message, f"deanonymizers.{label}"))
        written.append((new, "deanonymize_keep" if chosen is None else "decrypt"))
    return _replace(text, places, written)


def _replace(
    text: str, places: Sequence[AnalyzerResult | Anonymized], written: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the text with new texts at its places, and the item of each.

    Args:
        text: The text.
        places: The places, in their order.
        written: For each place, the new text and the operator that made it.
    """
    parts: list[str] = []
    items: list[dict[str, Any]] = []
    length = end = 0
    for place, (new, operator) in zip(places, written, strict=True):
        parts += [text[end : place.start], new]
        start = length + place.start - end
        length, end = start + len(new), place.end
        record = {"operator": operator, "entity_type": place.entity_type, "start": start, "end": length, "text": new}
        items.append(record)
    return {"text": "".join([*parts, text[end:]]), "items": items}
