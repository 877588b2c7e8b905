"""ModelRunner: runs the tasks of a model by its name."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload

from medvllm.engine.model_runner.engine_lease import lease_for_task
from medvllm.engine.model_runner.foreign_errors import drop_hidden_errors, translate_other_errors
from medvllm.engine.model_runner.inputs import Text, check_query, to_list
from medvllm.engine.model_runner.option_checks import check_count
from medvllm.engine.model_runner.request import Limits, current_limits
from medvllm.engines.kinds import EngineName, Precision, check_engine, check_precision
from medvllm.errors import CatalogError, ModelNotFoundError, RequestError
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import Lease, ModelRegistry, registry
from medvllm.names import parse_name
from medvllm.words import usual_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medvllm.engine.model_runner.batch.part_file import OutputFormat
    from medvllm.engine.model_runner.batch.summary import BatchSummary
    from medvllm.engine.model_runner.classification.assertions import AssertionResults
    from medvllm.engine.model_runner.classification.classify import ClassificationResults, Combination
    from medvllm.engine.model_runner.classification.head import Activation
    from medvllm.engine.model_runner.classification.marked_spans import SpanLike
    from medvllm.engine.model_runner.classification.rerank import ScoreActivation
    from medvllm.engine.model_runner.embedding.embed import Embeddings
    from medvllm.engine.model_runner.embedding.prompts import Role
    from medvllm.engine.model_runner.fill_mask import FillMaskResults
    from medvllm.engine.model_runner.generation.answers import GenerationResults, Piece
    from medvllm.engine.model_runner.generation.options import GenerationOptions
    from medvllm.engine.model_runner.ranking import Ranking
    from medvllm.engine.model_runner.reading.windows import LongInput
    from medvllm.engine.model_runner.redaction.results import RedactionResults
    from medvllm.engine.model_runner.tagging.aggregation import Aggregation
    from medvllm.engine.model_runner.tagging.entities import EntityResults


class _GenerationKeywords(TypedDict, total=False):
    max_new_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int | None
    allow_special_tokens: bool


class ModelRunner:
    """Runs the tasks of one model.

    The runner leases the model for each call only, so an idle runner keeps nothing in memory. It can be pickled.

    Args:
        name: A registered name, a repository or a folder.
        registry: The registry that loads the model.
        engine: What computes: "torch", which is the reference; "onnx" or "openvino", which compute an exported graph on
            the CPU; or "auto", the fastest of them on this machine. An engine serves only after it has agreed with
            torch. Otherwise torch serves, and the log and the receipt say why.
        precision: "int8" lets ONNX Runtime compute in 8 bits, if the answers to synthetic texts stay the same.
            Otherwise it computes in float32, and the log and the receipt say why.
        options: The options of `registry.load_model`, for example `device` and `dtype`.

    Raises:
        RequestError: There is no such engine, or it does not compute in this precision.
        MissingDependencyError: The library of the engine is not installed.

    Example:
        >>> runner = ModelRunner("biobert-base-cased-v1.2")
        >>> vectors = runner.embed(["Patient denies chest pain."]).vectors
    """

    def __init__(
        self,
        name: "str | os.PathLike[str]",
        *,
        registry: ModelRegistry = registry,
        engine: "EngineName" = "torch",
        precision: "Precision" = "float32",
        **options: Any,
    ) -> None:
        self._name, self._registry, self._options = name, registry, options
        self._engine: EngineName = check_engine(engine)
        self._precision: Precision = check_precision(precision, self._engine)
        # In a runner that came from another process: the entries behind the name that only that process knew.
        self._entries: tuple[ModelMetadata, ...] = ()

    def __reduce__(self) -> "tuple[Any, ...]":
        """Pickle as a name, with the entries behind it that only this process knows: also that of a base."""
        entries = self._entries or self._registry.process_entries(self._name)
        computed = {"engine": self._engine, "precision": self._precision}
        return _rebuild, (type(self), self._name, self._registry, self._options | computed, entries)

    def __repr__(self) -> str:
        return f"ModelRunner({str(self._name)!r})"

    @property
    def name(self) -> str:
        """The name of the model, as it was given."""
        return str(self._name)

    @property
    def task(self) -> str:
        """The task that `run` runs if none is named: the entry's, or else what the model's class was made for.

        For a model without an entry, the class is only known once it is loaded, so this may load it.

        Raises:
            MedVLLMError: As for `registry.load_model`.
        """
        from medvllm.engine.model_runner.tasks import default_task, task_of_entry

        self._adopt_entries()
        with suppress(ModelNotFoundError):
            if task := task_of_entry(self._registry.get_metadata(self._name)):
                return task
        with self._registry.lease(self._name, **self._options) as lease, translate_other_errors(lease.metadata.name):
            return default_task(lease, ())

    def embed(
        self,
        texts: Iterable[Text],
        *,
        role: "Role | None" = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        long_input: "LongInput | None" = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "Embeddings":
        """Return a vector for each text, pooled as the entry says. Long texts are read in overlapping windows.

        Args:
            texts: The texts. If the entry has two `inputs`, such as a title and an abstract, pairs of texts.
            role: Which side of a search the vectors are for, "query" or "document": the model's prompt of that name is
                put before each text.
            prompt_name: The name of the model's prompt to put before each text.
            prompt: The prompt itself. Without any of these, the prompt of the entry's role applies, or the default
                prompt.
            long_input: What becomes of a text longer than the model: it is read in windows that overlap ("window"),
                refused ("error") or cut, as its `coverage` then says ("truncate"). By default, the entry's
                `long_input`, or else windows.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            Embeddings: `vectors` is an array of shape [texts, size], float32; `coverage` says what was read of each
            text.

        Raises:
            RequestError: A text cannot be embedded, the model has no prompt of that name, it is for the other side of a
                search, or it was made for another task and nothing states a pooling.
            LoadError: The model cannot run, or returns NaN or infinity.
        """
        options: dict[str, Any] = {"role": role, "prompt_name": prompt_name, "prompt": prompt, "long_input": long_input}
        options["allow_special_tokens"] = allow_special_tokens
        return cast("Embeddings", self.run("embed", texts, with_receipt=with_receipt, **options))

    def similarity(
        self, texts: Iterable[Text], others: Iterable[Text] | None = None, *, allow_special_tokens: bool = False
    ) -> "NDArray[np.float32]":
        """Return how similar each text is to each other one.

        The entry or the folder says how vectors are compared: by cosine, which is the default, by dot product, or by
        the negative Euclidean or Manhattan distance. More is closer.

        Args:
            texts: The texts.
            others: The texts to compare them with; None for `texts` themselves.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.

        Returns:
            An array of shape [texts, others], float32.

        Raises:
            RequestError: A text cannot be embedded.
            LoadError: The model cannot run, or returns NaN or infinity.
        """
        from medvllm.engine.model_runner.embedding.similarity import compare

        made = self.embed(texts, allow_special_tokens=allow_special_tokens)
        against = made if others is None else self.embed(others, allow_special_tokens=allow_special_tokens)
        return compare(made.vectors, against.vectors, made.similarity)

    def search(
        self, query: str, texts: Iterable[Text], k: int = 10, *, allow_special_tokens: bool = False
    ) -> "Ranking":
        """Return the texts that are most similar to a query, the best first.

        The query gets the model's prompt for queries, and the texts that for documents. If the entry has a
        `counterpart`, the encoder of each side makes its vectors.

        Args:
            query: What is looked for.
            texts: The texts to search, or pairs if the encoder of documents takes pairs.
            k: How many texts to return.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.

        Returns:
            A list of texts with `index` (the position in `texts`, from 0), `score` and `coverage`.

        Raises:
            RequestError: The model makes vectors for one side of a search only, or a text cannot be embedded.
            LoadError: The model cannot run, or returns NaN or infinity.

        Example:
            >>> articles = [["Aspirin after stroke", "75 mg daily …"], ["Asthma in children", "Wheezing …"]]
            >>> hits = ModelRunner("ncbi/MedCPT-Query-Encoder").search("secondary prevention of stroke", articles)
            >>> print(hits[0].index, hits[0].score)
        """
        from medvllm.engine.model_runner.embedding.similarity import compare
        from medvllm.engine.model_runner.ranking import RankedText, Ranking

        check_count("k", k)
        check_query(query)
        options: dict[str, Any] = {"allow_special_tokens": allow_special_tokens}
        asked = self._for_role("query").embed([query], role="query", **options)
        found = self._for_role("document").embed(texts, role="document", **options)
        scores = compare(asked.vectors, found.vectors, found.similarity)[0].tolist()
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[:k]
        ranking = Ranking(RankedText(index, scores[index], found.coverage[index]) for index in best)
        ranking.task = "search"
        return ranking

    def entities(
        self,
        texts: Iterable[str | Sequence[str]],
        *,
        threshold: float = 0.0,
        labels: Sequence[str] | None = None,
        aggregation: "Aggregation | None" = None,
        long_input: "LongInput | None" = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "EntityResults":
        """Return the entities of each text: what a NER model finds, or what a de-identification model would remove.

        Args:
            texts: The texts. Or lists of words, which the model then reads as they are.
            threshold: Spans with a lower score are left out. The score of a span is the lowest of its words' scores.
            labels: The types of entities to return, such as ["DATE"]; None for all.
            aggregation: How the labels of a word's pieces become the label of the word. "first": the label of the
                first piece. "any": the label of the first piece that is part of an entity. "max": the label with the
                highest score. "average": the label with the highest mean score. "simple": each piece keeps its own
                label, so a span may begin or end inside a word. By default the entry's; without one, "first" for a
                NER model or for given words, and "any" for de-identification.
            long_input: What becomes of a text longer than the model: it is read in windows that overlap ("window"),
                refused ("error") or cut, as its `coverage` then says ("truncate"). By default, the entry's
                `long_input`, or else windows.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each text, `Entities`: `spans` with their offsets in Unicode code points, and `coverage`. The offsets
            of a list of words are those in the words with one blank between two of them; the spans have `first_word`
            and `last_word`, too.

        Raises:
            RequestError: The model is not a token classifier, its labels are not clear, it has no such label, or a
                text or an option cannot be used.
            LoadError: The model cannot run, or returns NaN or infinity.

        Example:
            >>> runner = ModelRunner("obi/deid_bert_i2b2")
            >>> for span in runner.entities(["Seen by Dr. Peña on 3 May."])[0].spans:
            ...     print(span.start, span.end, span.label, span.text)
        """
        options = {
            "threshold": threshold,
            "labels": labels,
            "aggregation": aggregation,
            "long_input": long_input,
            "allow_special_tokens": allow_special_tokens,
        }
        return cast("EntityResults", self.run("ner", texts, with_receipt=with_receipt, **options))

    def redact(
        self,
        texts: Iterable[str],
        *,
        operators: Mapping[str, Mapping[str, Any]] | None = None,
        threshold: float = 0.2,
        labels: Sequence[str] | None = None,
        documents: Sequence[str] | None = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "RedactionResults":
        """Return each text with what is likely to identify someone written over.

        A word is redacted if any of its pieces is likely not to be outside of the labels, or if it has letters that the
        vocabulary lacks. It is redacted whole, with what hyphens and apostrophes join to it; neighbours with the same
        label are one item. Marks of an earlier redaction, such as `[**Name 12**]`, `___` and `[NAME]`, stay.

        No model finds everything. Use it as one layer of de-identification.

        Args:
            texts: The texts.
            operators: For a label, or for "DEFAULT", the operator and its options, for example
                `{"DEFAULT": {"type": "replace"}, "PATIENT": {"type": "surrogate", "seed": 7}}`. The types are:
                "replace" (`new_value`; "[LABEL]" by default), "mask" (`masking_char`), "redact" (removes), "hash"
                (`key`, `length`), "surrogate" (`seed`, `key`, `scope`, `vault`, `locale`), "shift_dates" (`days`,
                `key`, `date_order`) and "keep".
            threshold: How likely, from 0 to 1, a piece of a word must be not to be outside. The default of 0.2 weighs a
                name that stays as much as four words that are gone without need.
            labels: The labels to redact; all by default. Required if the model is no de-identifier.
            documents: The document that each text belongs to, such as the number of a patient. Texts of one document
                have their dates shifted by the same number of days. By default, each text is its own document.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each text, `Redaction`: the redacted `text`, its `items` with the offsets of each change, `coverage`.

        Raises:
            InputTooLongError: The model would not read the whole of a text.
            RequestError: The model is no de-identifier, an argument or a text cannot be used, or the tokenizer leaves
                out a part of a text.
            LoadError: The model cannot run, or returns NaN or infinity.
            OutputError: The vault cannot be read or written.
            SettingError: The key in the settings cannot be read.
            MissingDependencyError: Surrogates are asked for, and Faker is not installed.

        Example:
            >>> runner = ModelRunner("obi/deid_bert_i2b2")
            >>> print(runner.redact(["Seen by Dr. Peña on 3 May."])[0].text)
        """
        options = {"operators": operators, "threshold": threshold, "labels": labels, "documents": documents}
        options["allow_special_tokens"] = allow_special_tokens
        return cast("RedactionResults", self.run("redact", texts, with_receipt=with_receipt, **options))

    def fill_mask(
        self,
        texts: Iterable[str],
        *,
        targets: Sequence[str] | None = None,
        top_k: int | None = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "FillMaskResults":
        """Return the most likely word pieces for each [MASK] in each text.

        Args:
            texts: Texts with at least one [MASK] each.
            targets: The only word pieces to score: their names, such as "Ġaspirin" or "##mg", or texts that are one
                word piece each, such as " aspirin". A text of several word pieces is refused.
            top_k: How many word pieces to return for each gap. By default 5, or all targets.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each text, for each gap, a list of `Fill` (token, text and probability), best first. The probability is
            that among all word pieces, also with `targets`.

        Raises:
            InputTooLongError: A text is longer than the model can read at once.
            RequestError: The model cannot fill gaps, a text has none, or a target is not one word piece.
            LoadError: The model cannot run, or returns NaN or infinity.
        """
        options = {"targets": targets, "top_k": top_k, "allow_special_tokens": allow_special_tokens}
        return cast("FillMaskResults", self.run("fill-mask", texts, with_receipt=with_receipt, **options))

    @overload
    def generate(
        self,
        prompts: Iterable[Any],
        *,
        stream: Literal[False] = False,
        with_receipt: bool = False,
        **options: Unpack[_GenerationKeywords],
    ) -> "GenerationResults": ...

    @overload
    def generate(
        self, prompts: Iterable[Any], *, stream: Literal[True], **options: Unpack[_GenerationKeywords]
    ) -> "Generator[Piece]": ...

    def generate(
        self,
        prompts: Iterable[Any],
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stream: bool = False,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "GenerationResults | Generator[Piece]":
        """Return the text that a decoder generates for each prompt: the likeliest token at each step, by default.

        Args:
            prompts: Texts to continue, or conversations to answer. A conversation is a list of messages such as
                {"role": "user", "content": text}, and is written in the model's own chat template. A list of messages
                counts as one conversation.
            max_new_tokens: The longest answer, in tokens. By default 256, or fewer if the model's context has no room
                for so many.
            stop: A text, or texts, that end an answer. The answer does not contain it.
            temperature: Above 0, tokens are sampled; the logits are divided by it first.
            top_p: Sampling chooses among the likeliest tokens whose probabilities add up to this, at most 1.
            top_k: Sampling chooses among so many of the likeliest tokens.
            seed: The start of the random numbers, so that sampling can be repeated. Each prompt is sampled as if it
                were alone: the same prompt with the same seed has the same answer.
            stream: Whether to return a generator of pieces of text instead. It holds the model from the first piece to
                the last, or until it is closed; closing it ends the computation.
            allow_special_tokens: Whether "</s>" and the like in a prompt or a message are special tokens. By default,
                they are text, and only those of the chat template are special tokens.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each prompt, `Answer`: `text`, `finish_reason` ("stop" or "length"), `prompt_tokens`,
            `completion_tokens` and `coverage`. With `stream`, a generator of `Piece`: each is a str, with the
            `position` of its prompt and, in the last piece of a prompt, its `answer`.

        Raises:
            InputTooLongError: A prompt leaves no room for the answer. A prompt is never shortened.
            RequestError: The model is no decoder, it has no chat template, or a prompt or an option cannot be used.
            LoadError: The model cannot run, or returns NaN or infinity.

        Example:
            >>> runner = ModelRunner("microsoft/biogpt")
            >>> for piece in runner.generate(["Aspirin is"], stream=True):
            ...     print(piece, end="")
        """
        from medvllm.engine.model_runner.generation.options import check_generate_options
        from medvllm.engine.model_runner.generation.prompts import check_prompts

        options: _GenerationKeywords = {
            "max_new_tokens": max_new_tokens,
            "stop": stop,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "allow_special_tokens": allow_special_tokens,
        }
        if not stream:
            given = check_prompts(prompts)
            return cast("GenerationResults", self.run("generate", given, with_receipt=with_receipt, **options))
        if with_receipt:
            raise RequestError(
                "A stream has no receipt.\nGet one with: with registry.lease(name) as lease: lease.receipt",
                argument="with_receipt",
            )
        checked = check_generate_options(**options)  # before the first piece is asked for
        return self._stream(check_prompts(prompts), checked, current_limits())

    def _stream(self, prompts: Iterable[Any], options: "GenerationOptions", limits: Limits) -> "Generator[Piece]":
        """Yield pieces of the answers. The lease lasts until the generator ends, is closed or is collected."""
        with closing(self._stream_leased(prompts, options, limits)) as pieces:
            advance = drop_hidden_errors(lambda: next(pieces, None))
            while (piece := advance()) is not None:
                yield piece

    def _stream_leased(
        self, prompts: Iterable[Any], options: "GenerationOptions", limits: Limits
    ) -> "Generator[Piece]":
        from medvllm.engine.model_runner.generation.generate import stream

        self._adopt_entries()
        with self._registry.lease(self._name, **self._options) as lease, translate_other_errors(lease.metadata.name):
            version = lease.metadata.version
            with closing(stream(lease, prompts, options, limits)) as pieces:
                for piece in pieces:
                    piece.version = version
                    yield piece

    def classify(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        activation: "Activation | None" = None,
        windows: "Combination | None" = None,
        long_input: "LongInput | None" = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "ClassificationResults":
        """Return the labels of each text with their scores, the likeliest first.

        A text that is longer than the model is refused by default, because no combination of its windows is what one
        pass over it would say. Pass `windows`, or register the model with `long_input`.

        Args:
            texts: The texts, or pairs of texts if the model takes pairs, such as a premise and a hypothesis.
            top_k: How many labels to return for each text; None for all.
            activation: "softmax" for labels that exclude each other, "sigmoid" for others, "none" for the logits. By
                default, the entry's `activation`, the config's `problem_type` or the number of labels decides.
            windows: How the scores of a long text are made of those of its windows: "mean", weighted by the windows'
                lengths in tokens, or "max".
            long_input: What becomes of a text longer than the model: it is read in windows that overlap ("window"),
                refused ("error") or cut, as its `coverage` then says ("truncate"). By default, the entry's
                `long_input`, or else "error".
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each text, a sequence of labels with `label`, `score` and `coverage`.

        Raises:
            InputTooLongError: A text is longer than the model, and nothing says how to read it.
            RequestError: The model is no classifier of texts, it is a cross-encoder whose score has no label, or a text
                or an option cannot be used.
            WeightsMismatchError: The model's labels have no names.
            LoadError: The model cannot run, or returns NaN or infinity.

        Example:
            >>> result = ModelRunner("pritamdeka/PubMedBERT-MNLI-MedNLI").classify([["No fever.", "He is afebrile."]])
            >>> print(result[0].label, result[0].score)
        """
        options: dict[str, Any] = {"top_k": top_k, "activation": activation, "windows": windows}
        options["long_input"] = long_input
        options["allow_special_tokens"] = allow_special_tokens
        return cast("ClassificationResults", self.run("classify", texts, with_receipt=with_receipt, **options))

    def assertions(
        self,
        texts: Iterable[str],
        spans: "Sequence[Sequence[SpanLike]]",
        *,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "AssertionResults":
        """Return whether what each span names is present, absent or possible, as the model's labels say.

        The span is marked in its text as the entry's `entity_markers` state. Of a text that is longer than the model,
        the model reads the span with as many tokens before it as after it.

        Args:
            texts: The texts.
            spans: For each text, its spans: what `entities` finds, other objects or records with `start` and `end`, or
                pairs of start and end. Offsets count Unicode code points.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            For each text, for each of its spans, `Assertion`: `label`, `score`, the `scores` of all labels, and the
            `coverage` of what was read around the span.

        Raises:
            InputTooLongError: A span is longer than the model, or a text is, and the entry forbids cutting it.
            RequestError: The model judges no marked spans, or a span or a text cannot be used.
            LoadError: The model cannot run, or returns NaN or infinity.

        Example:
            >>> runner = ModelRunner("bvanaken/clinical-assertion-negation-bert")
            >>> [[found]] = runner.assertions(["Patient denies fever."], [[(15, 20)]])
            >>> print(found.text, found.label, found.scores)
        """
        options = {"spans": spans, "allow_special_tokens": allow_special_tokens}
        return cast("AssertionResults", self.run("assertions", texts, with_receipt=with_receipt, **options))

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        activation: "ScoreActivation | None" = None,
        long_input: "LongInput | None" = None,
        allow_special_tokens: bool = False,
        with_receipt: bool = False,
    ) -> "Ranking":
        """Return documents in the order in which a cross-encoder ranks them for a query, the best first.

        A score is the logit of the pair, or its sigmoid, as the entry's `activation` or the folder says. By default, it
        is the sigmoid, as in sentence-transformers. A document that is longer than the model is read in windows, each
        with the whole query, and has the score of its best window.

        Args:
            query: What is asked.
            documents: The texts to order.
            top_k: How many documents to return; None for all.
            activation: "sigmoid" for scores from 0 to 1, or "none" for logits.
            long_input: What becomes of a text longer than the model: it is read in windows that overlap ("window"),
                refused ("error") or cut, as its `coverage` then says ("truncate"). By default, the entry's
                `long_input`, or else windows.
            allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.
            with_receipt: Whether the result has a receipt of what answered.

        Returns:
            A list of documents with `index` (the position in `documents`, from 0), `score` and `coverage`.

        Raises:
            InputTooLongError: The query leaves no room for a document, or the entry forbids splitting a document.
            RequestError: Neither the entry nor the folder says that the model scores pairs, or a text or an option
                cannot be used.
            LoadError: The model cannot run, returns NaN or infinity, or declares another kind of score.

        Example:
            >>> ranked = ModelRunner("ncbi/MedCPT-Cross-Encoder").rerank("aspirin dose", ["75 mg daily", "chest pain"])
            >>> print([(document.index, document.score) for document in ranked])
        """
        options: dict[str, Any] = {"query": query, "top_k": top_k, "activation": activation, "long_input": long_input}
        options["allow_special_tokens"] = allow_special_tokens
        return cast("Ranking", self.run("rerank", documents, with_receipt=with_receipt, **options))

    @drop_hidden_errors
    def run(self, task: str | None, texts: Iterable[Any], *, with_receipt: bool = False, **arguments: Any) -> Any:
        """Run a task by its name.

        Args:
            task: Its name, for example "embed", "ner" or "classify"; None for the model's own task.
            texts: The texts, or pairs of texts.
            with_receipt: Whether the result has a receipt of what answered. It takes longer than a small model.
            arguments: The options of the task, for example `top_k`.

        Returns:
            Result: What the task's own method returns. Its attribute `task` says which task ran.

        Raises:
            RequestError: ModelRunner cannot run the task, or the texts or arguments cannot be used.
            InputTooLongError: A text is too long, and the task or the entry forbids cutting it.
            LoadError: The model cannot run, or returns NaN or infinity.
            OverloadedError: Too many tokens wait for their turn.
            DeadlineError: The deadline of the `Request` around the call has passed.
            RequestCancelledError: That request was cancelled.
        """
        from medvllm.engine.model_runner.tasks import check_task, run_task

        if task is not None:
            task = usual_task(task) if isinstance(task, str) else task
            arguments = check_task(task, arguments)  # before anything is loaded
        limits = current_limits()
        limits.check()
        given = to_list(texts)  # outside of the translation: an error of the caller's generator is the caller's
        with self.lease_for(task, given) as lease:
            limits.check()  # the load may have taken long
            result = run_task(lease, task, given, arguments)
            result.version = lease.metadata.version
            with translate_other_errors(lease.metadata.name):
                result.receipt = lease.receipt if with_receipt else None
            return result

    def batch(
        self,
        sources: "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]",
        out: "str | os.PathLike[str]",
        *,
        task: str | None = None,
        text_column: str | Sequence[str] | None = None,
        id_column: str | None = None,
        format: str | None = None,
        rows_per_part: int = 1_000,
        output_format: "OutputFormat" = "parquet",
        workers: int = 1,
        ray: str | None = None,
        restart: bool = False,
        **arguments: Any,
    ) -> "BatchSummary":
        """Run a task over a large corpus in parts. If it is stopped, the same call goes on with it.

        Each part is a file in the folder `parts` of `out`. It appears complete or not at all, and then the manifest
        has its digest. A row that cannot be answered does not stop the others: bad_rows.jsonl has its place and why.

        Args:
            sources: Files (.jsonl, .json, .csv, .tsv, .parquet, or one text a line), folders of .txt files, or URLs
                such as s3://bucket/notes.jsonl. A pattern such as "notes/*.parquet" stands for several files.
            out: The folder to write to: a new or empty one, or that of the same batch.
            task: The task; None for the model's own one.
            text_column: The column of the texts, "text" by default; two for pairs of texts.
            id_column: The column of the ids; by default "id", if there is one, or else rows are numbered from 1.
            format: The format of the sources, such as "csv"; by default, the ending of each name says it.
            rows_per_part: How many rows a part has. At most the parts in work are lost when the batch is stopped.
            output_format: The format of the parts: "parquet" or "jsonl".
            workers: How many processes answer; with 1, this one does. With `ray`, how many actors.
            ray: The address of a Ray cluster whose actors answer: "auto" for the one of this machine, "host:port", or
                "local" to start a Ray here.
            restart: Whether to remove the batch in `out`, and begin anew.
            arguments: The options of the task, for example `threshold`.

        Returns:
            BatchSummary: How many rows and parts there are, how many were answered, and how fast.

        Raises:
            RequestError: The sources, the task or an argument cannot be used, another run writes to `out`, or the batch
                there was begun with other input, another model or other options.
            OutputError: `out` cannot be written to.
            LoadError: The model cannot run.
            SettingError: There is no Ray cluster at the address.
            MissingDependencyError: pyarrow or Ray is needed, and not installed.

        Example:
            >>> runner = ModelRunner("obi/deid_bert_i2b2")
            >>> print(runner.batch("notes.jsonl", "out", task="redact"))
        """
        from medvllm.corpora.reading.columns import Columns
        from medvllm.engine.model_runner.batch.batch_run import BatchRun
        from medvllm.engine.model_runner.batch.source import Source, find_names
        from medvllm.engine.model_runner.corpus_run import columns_for

        chosen = self.task if task is None else usual_task(task)
        named = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
        texts = (text_column,) if isinstance(text_column, str) else tuple(text_column or ())
        inputs: Sequence[str] = ()
        with suppress(ModelNotFoundError):
            inputs = self._registry.get_metadata(self._name).behaviour.inputs
        columns = columns_for(chosen, Columns(texts, id_column), inputs)
        run = BatchRun(
            self,
            Source(find_names([os.fspath(each) for each in named]), columns, format),
            Path(out),
            chosen,
            arguments,
            rows_per_part,
            output_format,
            workers,
            ray,
            self._options.get("device"),
        )
        return run.run(restart=restart)

    def record_baseline(self, *, reason: str | None = None) -> ModelMetadata:
        """Record the model's output for a few synthetic inputs in its entry, and return the entry.

        A stored entry keeps the baseline. An entry of this process has it as long as the process runs. A built-in entry
        is stored as a copy.

        Args:
            reason: Why; the history of a stored entry keeps it.
        """
        from medvllm.engine.model_runner.baseline import compute_cases

        self._adopt_entries()
        name = self._registry.get_metadata(self._name).reference  # before anything is loaded
        with self._registry.lease(name, **self._options) as lease, translate_other_errors(name):
            cases = compute_cases(lease)
        return self._registry.record_baseline(name, cases, reason=reason)

    def check_baseline(self) -> dict[str, str]:
        """Compute the baseline again, and return how each case deviates: an empty dict if none does.

        Raises:
            CatalogError: The entry has no baseline.
        """
        from medvllm.engine.model_runner.baseline import find_deviations

        self._adopt_entries()
        metadata = self._registry.get_metadata(self._name)
        if not metadata.baseline:
            raise CatalogError(
                f"Model {metadata.name!r} has no baseline.\n"
                f"Record one with: medvllm baseline record {metadata.reference}",
                model=metadata.name,
            )
        with self._registry.lease(metadata.reference, **self._options) as lease, translate_other_errors(metadata.name):
            return find_deviations(lease, metadata.baseline)

    def _for_role(self, role: "Role") -> "ModelRunner":
        """Return the runner of the encoder for one side of a search: this one, or that of the entry's counterpart."""
        self._adopt_entries()
        with suppress(ModelNotFoundError):
            behaviour = self._registry.get_metadata(self._name).behaviour
            if behaviour.counterpart and behaviour.role not in (None, role):
                return type(self)(
                    behaviour.counterpart,
                    registry=self._registry,
                    engine=self._engine,
                    precision=self._precision,
                    **self._options,
                )
        return self

    def pinned(self) -> "ModelRunner":
        """Return a runner of what the name means now, also if an alias moves later, or in another working directory."""
        self._adopt_entries()
        try:
            name: str | os.PathLike[str] = self._registry.get_metadata(self._name).reference
        except ModelNotFoundError:
            found = parse_name(self._name)
            name = found.name if found.kind == "folder" else self._name
        return type(self)(
            name, registry=self._registry, engine=self._engine, precision=self._precision, **self._options
        )

    def lease_for(self, task: str | None, texts: Sequence[Any] = ()) -> AbstractContextManager[Lease]:
        """Return what leases the model for a task, for the duration of a `with` block.

        Args:
            task: The task; None for the model's own one.
            texts: The texts. Without a task, they may decide it.
        """
        self._adopt_entries()
        return lease_for_task(self._registry, self._name, self._options, self._engine, self._precision, task, texts)

    def _adopt_entries(self) -> None:
        """Register what the runner was sent with. ModelExistsError: a name of it means another model here."""
        self._registry.adopt_entries(self._entries)


def _rebuild(
    kind: type[ModelRunner],
    name: "str | os.PathLike[str]",
    registry: ModelRegistry,
    options: dict[str, Any],
    entries: tuple[ModelMetadata, ...],
) -> ModelRunner:
    """Return the runner that another process sent."""
    runner = kind(name, registry=registry, **options)
    runner._entries = entries
    return runner
