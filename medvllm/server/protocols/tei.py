"""Text Embeddings Inference: `/embed`, `/predict`, `/similarity` and `/info`. Its `/rerank` is in `rerank.py`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm import __version__
from medvllm.activations import scale
from medvllm.engine.model_runner.classification.classify import Classification
from medvllm.engine.model_runner.embedding.embed import Embeddings
from medvllm.engine.model_runner.embedding.similarity import compare
from medvllm.engine.model_runner.reading.windows import LongInput
from medvllm.metadata import ModelMetadata
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import Map, answer_of
from medvllm.server.named_model import Choice
from medvllm.server.other_names import merge
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.texts import TolerantModel, check_texts
from medvllm.server.unsupported import Refused, refuse_others

router = APIRouter(tags=["Text Embeddings Inference"], route_class=StrictRoute)

_LABELS = [{"label": "ABSENT", "score": 0.9}, {"label": "PRESENT", "score": 0.1}]
_INFO = {
    "model_id": "my-encoder",
    "model_sha": "67c9c25b46986521ca33df05d8540da1210b3256",
    "model_dtype": "auto",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 320,
    "max_input_length": 512,
    "max_client_batch_size": 2048,
    "auto_truncate": False,
    "version": __version__,
    "entry_version": "3",
}
_OTHER_INFO = {
    **_INFO,
    "model_id": "my-classifier",
    "model_sha": None,
    "model_type": {"classifier": {"id2label": Map({"0": "ABSENT"}), "label2id": Map({"ABSENT": 0})}},
    "max_input_length": None,
}


# What servers of similar routes can do, and this one cannot, with the values that ask for nothing.
_REFUSED: Refused = {
    **dict.fromkeys(("top_n", "top_k", "function_to_apply", "prompt", "instruction", "output_dimension"), ()),
    "encoding_format": ("float",),
    "return_documents": (False,),
}


class TEIRequest(TolerantModel):
    """What requests of Text Embeddings Inference have in common. Unknown keys are ignored, if they change no answer.

    Attributes:
        model: A name of the catalogue. The protocol has none: the address, a header or the server's only model tells.
        truncate: Whether a long text is cut. By default nothing is: texts are read in windows, or refused.
        truncation_direction: Where to cut: only the end of a text can be.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"

    def check(self) -> None:
        """Raise ProblemError if the client asks for what the protocol does not have."""
        refuse_others(self.model_extra, _REFUSED)

    def long_input(self, entry: ModelMetadata) -> LongInput | None:
        """Return what becomes of long texts; None for what the entry says.

        An answer of this protocol cannot say what was read. So an entry that cuts long texts refuses them here, unless
        the client asks to have them cut.

        Raises:
            ProblemError: The client asks to cut the beginning.
        """
        if self.truncate and self.truncation_direction.lower() == "left":
            message = "A text can be cut at its end only.\nLeave out truncate to have all of it read."
            raise ProblemError(Problem(422, "unsupported_option", message, "truncation_direction"))
        if self.truncate:
            return "truncate"
        return "error" if entry.behaviour.long_input == "truncate" else None


class EmbedOptions(TEIRequest):
    """How vectors are made.

    Attributes:
        normalize: Whether vectors are scaled to length 1. If not, they are as the model makes them.
        prompt_name: The name of the model's prompt to put before each text.
        dimensions: How many of the first numbers of a vector to return; all by default.
    """

    normalize: bool = True
    prompt_name: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbedRequest(EmbedOptions):
    """The texts to embed.

    Attributes:
        inputs: A text, or a list of texts.
    """

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-encoder", "inputs": ["No fever."]}})

    inputs: str | list[str]


Single = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(TEIRequest):
    """The texts to classify.

    Attributes:
        inputs: A text; a pair of texts as a list; or a batch: a list of lists of one text or two.
        raw_scores: Whether scores are logits.
    """

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-classifier", "inputs": "No fever."}})

    inputs: str | Single | list[Single]
    raw_scores: bool = False


class Sentences(TolerantModel):
    """A text, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(TEIRequest):
    """How texts are compared.

    Attributes:
        prompt_name: The prompt before each text, by its name; the model's default one if there is one.
    """

    prompt_name: str | None = None


class SimilarityRequest(SimilarityParameters):
    """The texts to compare. The parameters may stand in `parameters`, or beside `inputs`.

    Attributes:
        inputs: The texts.
        parameters: `truncate`, `truncation_direction` and `prompt_name`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "my-encoder",
                "inputs": {"source_sentence": "No fever.", "sentences": ["Afebrile.", "Chest pain."]},
            }
        }
    )

    inputs: Sentences
    parameters: SimilarityParameters | None = None

    def chosen(self) -> SimilarityParameters:
        """Return the parameters, wherever they stand. ProblemError: one stands in both places, and differs."""
        beside = self.model_dump(exclude_unset=True, exclude={"inputs", "parameters"})
        within = self.parameters.model_dump(exclude_unset=True) if self.parameters else {}
        return SimilarityParameters.model_validate(merge(beside, within))


@router.post("/embed", response_class=JSONResponse, responses={200: answer_of([[0.6, -0.8]])})
async def embed(asked: EmbedRequest, http: Request, server: ServerOf, choice: Choice) -> Response:
    """Return a vector for each text."""
    asked.check()
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    check_texts(texts, server.config, "inputs")
    name = choice.name(asked.model)

    def call() -> Response:  # all of it, as the answer may be large
        return JSONResponse(finish_vectors(_embed(server, name, texts, asked), name, asked))

    return await server.run(http, call)


@router.post("/predict", responses={200: answer_of(_LABELS)})
async def predict(asked: PredictRequest, http: Request, server: ServerOf, choice: Choice) -> Any:
    """Return the labels of a text or a pair, the likeliest first; of a batch, a list of them for each."""
    asked.check()
    given = asked.inputs
    is_batch = not isinstance(given, str) and not isinstance(next(iter(given), None), str)
    items: Sequence[Any] = given if is_batch else [given]
    texts = [item[0] if len(item) == 1 and not isinstance(item, str) else item for item in items]
    found = await classify_texts(http, server, choice.name(asked.model), texts, asked, raw=asked.raw_scores)
    answers = [[vars(label) for label in labels] for labels in found]
    return answers if is_batch else answers[0]


@router.post("/similarity", responses={200: answer_of([0.8, 0.1])})
async def find_similarity(asked: SimilarityRequest, http: Request, server: ServerOf, choice: Choice) -> list[float]:
    """Return how similar each sentence is to the source sentence, as the model's vectors are compared."""
    texts = [asked.inputs.source_sentence, *asked.inputs.sentences]
    check_texts(asked.inputs.sentences, server.config, "inputs.sentences")
    check_texts(texts, server.config, "inputs")
    parameters = asked.chosen()
    parameters.check()
    name = choice.name(parameters.model)
    made = await server.run(http, lambda: _embed(server, name, texts, parameters))
    similarities: list[float] = compare(made.vectors[:1], made.vectors[1:], made.similarity)[0].tolist()
    return similarities


@router.get(
    "/info", responses={200: answer_of(_INFO, _OTHER_INFO, _INFO | {"model_id": "my-tagger", "model_type": {}})}
)
async def describe_server(http: Request, server: ServerOf, choice: Choice) -> dict[str, Any]:
    """Return the facts of a model and the limits of the server."""
    name = choice.name()
    entry = await server.look(http, lambda: server.entry(name))
    behaviour, config = entry.behaviour, server.config
    kinds: dict[str | None, dict[str, Any]] = {
        "classify": {"classifier": _labels_of(entry)},
        "rerank": {"reranker": _labels_of(entry)},
        **{key: {"embedding": {"pooling": behaviour.pooling or "mean"}} for key in (None, "embed")},
    }
    return {
        "model_id": entry.name,
        "model_sha": entry.source.revision,
        "model_dtype": entry.parameters.get("dtype", "auto"),
        "model_type": kinds.get(behaviour.task, {}),  # the protocol has no word for other tasks
        "max_concurrent_requests": config.max_calls + config.max_waiting,
        "max_input_length": behaviour.max_length,
        "max_client_batch_size": config.max_texts,
        "auto_truncate": False,
        "version": __version__,
        "entry_version": str(entry.version),
    }


def _embed(server: Server, name: str, texts: Sequence[str], asked: TEIRequest) -> Embeddings:
    """Return the vectors of texts."""
    entry = server.entry(name)
    prompt_name = asked.prompt_name if isinstance(asked, EmbedOptions | SimilarityParameters) else None
    return server.runner(entry.reference).embed(texts, prompt_name=prompt_name, long_input=asked.long_input(entry))


async def classify_texts(
    http: Request, server: Server, name: str, texts: Sequence[str | list[str]], asked: TEIRequest, *, raw: bool
) -> list[Classification]:
    """Return the labels of the texts or pairs of a request."""
    check_texts(texts, server.config, "inputs")

    def call() -> list[Classification]:
        entry = server.entry(name)
        options: dict[str, Any] = {"activation": "none" if raw else None, "long_input": asked.long_input(entry)}
        return server.runner(entry.reference).classify(texts, **options)

    return await server.run(http, call)


def finish_vectors(made: Embeddings, name: str, asked: EmbedOptions) -> list[list[float]]:
    """Return vectors as a request wants them. ProblemError: it wants more numbers than they have."""
    vectors = made.vectors
    if asked.dimensions is not None and asked.dimensions > vectors.shape[1]:
        message = f"Model {name!r} makes vectors of {vectors.shape[1]} numbers, so dimensions must not be more."
        raise ProblemError(Problem(422, "too_many_dimensions", message, "dimensions"))
    vectors = vectors[:, : asked.dimensions]
    numbers: list[list[float]] = (scale(vectors) if asked.normalize else vectors).tolist()
    return numbers


def _labels_of(entry: ModelMetadata) -> dict[str, Any]:
    labels = entry.behaviour.id2label or ()
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
