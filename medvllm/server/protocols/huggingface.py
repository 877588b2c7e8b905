"""Hugging Face's tasks, as its InferenceClient sends them to the address of a model: `POST /models/NAME`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.embedding.similarity import compare
from medvllm.engine.model_runner.fill_mask import FilledText
from medvllm.engine.model_runner.reading.windows import LongInput
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.named_model import only_name
from medvllm.server.other_names import merge
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.tei import EmbedOptions, Sentences, finish_vectors
from medvllm.server.texts import check_texts
from medvllm.server.unsupported import Refused, refuse_others
from medvllm.words import usual_task

router = APIRouter(tags=["Hugging Face"], route_class=StrictRoute)

Model = Annotated[str, Path(description="The name of an entry.", examples=["my-tagger"])]
Task = Annotated[str, Path(description="Hugging Face's word for the task.", examples=["token-classification"])]
_LABELS = [{"label": "ABSENT", "score": 0.9}, {"label": "PRESENT", "score": 0.1}]
_ANSWERS = answer_of(
    [{"entity_group": "DRUG", "score": 0.98, "word": "Insulin", "start": 0, "end": 7}],
    [_LABELS],
    [{"score": 0.4, "token": 2108, "token_str": "chest", "sequence": "She denies chest pain."}],
    [0.8, 0.1],
    [[0.6, -0.8]],
    [[_LABELS]],
)


_REFUSED: Refused = {
    # Of tasks without a shape here: a classifier has labels of its own.
    **dict.fromkeys(("candidate_labels", "hypothesis_template", "multi_label"), ()),
    # What transformers' pipelines take: windows are those of the entry, and entities are put together.
    **dict.fromkeys(("stride", "max_length", "ignore_subwords"), ()),
    **dict.fromkeys(("grouped_entities", "return_all_scores"), (True,)),
    "truncation": (False,),
}


class Parameters(EmbedOptions):
    """The parameters of all tasks. Those of another task, and unknown ones, are ignored, if they change no answer.

    Attributes:
        aggregation_strategy: How the labels of word pieces become entities; what the entry says, by default.
        ignore_labels: The labels to leave out.
        top_k: How many labels, or word pieces for a gap, to return.
        function_to_apply: How logits become scores; what the entry says, by default.
        targets: The only word pieces to score.
        encoding_format: Vectors are lists of numbers.
    """

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Annotated[list[str], Field(default_factory=list)]
    top_k: Annotated[int, Field(ge=1)] | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    targets: list[str] | None = None
    encoding_format: Literal["float"] = "float"

    model_config = ConfigDict(extra="allow")


class TaskRequest(Parameters):
    """The texts for a task. The parameters may stand in `parameters`, or beside `inputs`."""

    model_config = ConfigDict(json_schema_extra={"example": {"inputs": "Insulin was given."}})

    inputs: str | list[str] | Sentences
    parameters: Parameters | None = None

    def chosen(self) -> Parameters:
        """Return the parameters, wherever they stand. ProblemError: one stands in both places, and differs."""
        beside = self.model_dump(exclude_unset=True, exclude={"inputs", "parameters", "model"})
        within = self.parameters.model_dump(exclude_unset=True) if self.parameters else {}
        return Parameters.model_validate(merge(beside, within))


@router.post("/models/{model:path}/pipeline/{task}", response_class=JSONResponse, responses={200: _ANSWERS})
async def run_named_task(model: Model, task: Task, asked: TaskRequest, http: Request, server: ServerOf) -> Response:
    """Run a task, in Hugging Face's word for it, on the texts."""
    return await _run(http, server, model, task, asked)


@router.post("/models/{model:path}", response_class=JSONResponse, responses={200: _ANSWERS})
async def run_own_task(model: Model, asked: TaskRequest, http: Request, server: ServerOf) -> Response:
    """Run the model's own task on the texts: the answer has the shape that Hugging Face defines for it.

    - Token classification: `entity_group`, `score`, `word`, `start` and `end`, which count code points.
    - Text classification: `label` and `score` of each label.
    - Fill-mask: `token`, `token_str`, `score` and `sequence` for each word piece.
    - Feature extraction: a vector for each text. Sentence similarity: a number for each sentence.
    """
    return await _run(http, server, model, None, asked)


async def _run(http: Request, server: Server, model: str, task: str | None, asked: TaskRequest) -> Response:
    only_name(model, asked.model, asked.parameters.model if asked.parameters else None)
    chosen = asked.chosen()
    refuse_others(chosen.model_extra, _REFUSED)
    if isinstance(asked.inputs, Sentences):
        if task not in (None, "sentence-similarity"):
            message = f"Task {task[:80]!r} takes a text, or a list of texts."
            raise ProblemError(Problem(422, "invalid_request", message, "inputs"))
        texts, is_batch = [asked.inputs.source_sentence, *asked.inputs.sentences], True
        check_texts(asked.inputs.sentences, server.config, "inputs.sentences")
    elif task == "sentence-similarity":
        message = 'The task needs what to compare: {"source_sentence": "…", "sentences": ["…"]}'
        raise ProblemError(Problem(422, "invalid_request", message, "inputs"))
    else:
        is_batch = not isinstance(asked.inputs, str)
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    check_texts(texts, server.config, "inputs")

    def call() -> Response:
        entry = server.entry(model)
        long_input, runner = chosen.long_input(entry), server.runner(entry.reference)
        own = usual_task(task) if task else runner.task
        run = _compare if isinstance(asked.inputs, Sentences) else _TASKS.get(own)
        if run is None:
            message = f"Model {model!r} has the task {own!r}, which has no shape in this protocol."
            if task:
                advice = "Run the model's own task with: POST /models/NAME"
                message = f"Task {task[:80]!r} has no shape in this protocol.\n{advice}"
            raise ProblemError(Problem(422, "unsupported_task", message))
        return JSONResponse(run(runner, texts, chosen, long_input, is_batch))  # in the thread: it may be large

    return await server.run(http, call)


Run = Callable[[ModelRunner, Sequence[str], Parameters, "LongInput | None", bool], Any]


def _tag(runner: ModelRunner, texts: Sequence[str], chosen: Parameters, long_input: Any, is_batch: bool) -> Any:
    if chosen.aggregation_strategy == "none":
        message = (
            "Entities are always put together from their word pieces.\n"
            "Leave out aggregation_strategy, or use: simple, first, average, max"
        )
        raise ProblemError(Problem(422, "unsupported_option", message, "aggregation_strategy"))
    found = runner.entities(texts, aggregation=chosen.aggregation_strategy, long_input=long_input)
    answers = [
        [
            {"entity_group": span.label, "score": span.score, "word": span.text, "start": span.start, "end": span.end}
            for span in entities.spans
            if span.label not in chosen.ignore_labels
        ]
        for entities in found
    ]
    return answers if is_batch else answers[0]


def _classify(runner: ModelRunner, texts: Sequence[str], chosen: Parameters, long_input: Any, is_batch: bool) -> Any:
    found = runner.classify(texts, top_k=chosen.top_k, activation=chosen.function_to_apply, long_input=long_input)
    return [[vars(label) for label in labels] for labels in found]  # a list of lists, also for one text


def _fill(runner: ModelRunner, texts: Sequence[str], chosen: Parameters, long_input: Any, is_batch: bool) -> Any:
    filled = runner.fill_mask(texts, targets=chosen.targets, top_k=chosen.top_k)
    answers = [_describe_gaps(text, gaps) for text, gaps in zip(texts, filled, strict=True)]
    return answers if is_batch else answers[0]


def _embed(runner: ModelRunner, texts: Sequence[str], chosen: Parameters, long_input: Any, is_batch: bool) -> Any:
    made = runner.embed(texts, prompt_name=chosen.prompt_name, long_input=long_input)
    # Unlike Text Embeddings Inference, the task scales vectors only if it is asked to.
    asked = chosen.model_copy(
        update={"normalize": chosen.normalize if "normalize" in chosen.model_fields_set else False}
    )
    return finish_vectors(made, runner.name, asked)


def _compare(runner: ModelRunner, texts: Sequence[str], chosen: Parameters, long_input: Any, is_batch: bool) -> Any:
    made = runner.embed(texts, prompt_name=chosen.prompt_name, long_input=long_input)
    return compare(made.vectors[:1], made.vectors[1:], made.similarity)[0].tolist()


_TASKS: Mapping[str, Run] = {
    "ner": _tag,
    "deid": _tag,
    "classify": _classify,
    "fill-mask": _fill,
    "embed": _embed,
}


def _describe_gaps(text: str, gaps: FilledText) -> Any:
    """Return the word pieces for the gaps of a text: a list for one gap, and a list of lists for several."""
    marks = _find_gaps(text, len(gaps))
    answers = [
        [
            {
                "score": fill.score,
                "token": fill.id,
                "token_str": fill.text,
                "sequence": _fill_gap(text, place, fill.text),
            }
            for fill in fills
        ]
        for place, fills in zip(marks, gaps, strict=True)
    ]
    return answers[0] if len(answers) == 1 else answers


def _find_gaps(text: str, count: int) -> list[tuple[int, int]]:
    """Return the places of the gaps of a text, which are written as [MASK] or as <mask>."""
    import regex

    for gap in (r"\[MASK\]|<mask>", r"\[MASK\]", "<mask>"):  # one of them may be a word of the text
        places = [found.span() for found in regex.finditer(gap, text)]
        if len(places) == count:
            return places
    message = "It is not clear which words of the text are its gaps.\nWrite each gap as: [MASK]"
    raise ProblemError(Problem(422, "invalid_request", message, "inputs"))


def _fill_gap(text: str, place: tuple[int, int], word: str) -> str:
    """Return a text with a word in place of a gap."""
    before, after = text[: place[0]], text[place[1] :]
    if word.startswith("##"):
        return before.rstrip() + word.removeprefix("##") + after
    return before + (word.lstrip() if before[-1:].isspace() else word) + after
