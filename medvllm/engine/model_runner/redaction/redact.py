"""The task redact: texts in which whatever is likely to identify someone is written over."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inputs import check_single_texts
from medvllm.engine.model_runner.option_checks import check_flag
from medvllm.engine.model_runner.redaction.findings import Finding, find_likely, find_unread
from medvllm.engine.model_runner.redaction.marks import find_marks
from medvllm.engine.model_runner.redaction.operators import Found, Operators, Replace, parse_operators
from medvllm.engine.model_runner.redaction.results import RedactedItem, Redaction, RedactionResults
from medvllm.engine.model_runner.tagging.entities import check_labels, not_deid_error
from medvllm.engine.model_runner.tagging.tagged_text import TaggedText, is_token_classifier, label_words, read_labels
from medvllm.errors import InputTooLongError, RequestError
from medvllm.label_schemes import LabelScheme
from medvllm.model_registry import Lease

# A word that stays and identifies someone weighs as much as four words that are gone without need.
THRESHOLD = 0.2

Options = Mapping[str, Mapping[str, Any]]


def redact(
    lease: Lease,
    texts: Iterable[str],
    *,
    operators: Options | Operators | None = None,
    threshold: float = THRESHOLD,
    labels: Sequence[str] | None = None,
    documents: Sequence[str] | None = None,
    allow_special_tokens: bool = False,
) -> RedactionResults:
    """Return each text with what is likely to identify someone written over.

    See `ModelRunner.redact` for the arguments.

    Raises:
        InputTooLongError: The model would not read the whole of a text.
        RequestError: The model is no de-identifier, an argument cannot be used, or a part of a text was not read.
    """
    chosen = parse_operators(operators)
    scheme = _check_model(lease, labels)
    wanted = check_labels(lease, scheme, labels) or scheme.kinds
    check_labels(lease, scheme, chosen.by_label)
    given = check_single_texts(lease, texts, "redact")
    names = given if documents is None else documents
    if len(names) != len(given):
        raise RequestError(
            f"documents must name the document of each text: there are {len(names):,} names and {len(given):,} texts.",
            option="documents",
        )
    written = [*chosen.new_values(), *(f"[{label}]" for label in scheme.kinds)]
    found, coverage = [], []
    for position, tagged in enumerate(label_words(lease, given, allow_special_tokens=allow_special_tokens)):
        _check_read(lease, tagged, position)
        found.append(find_likely(tagged, wanted, threshold, find_marks(tagged.text, written)))
        coverage.append(tagged.coverage)
    sources = [
        [Found(text[each.start : each.end], each.label, name) for each in findings]
        for text, findings, name in zip(given, found, names, strict=True)
    ]
    of_document: dict[str, list[str]] = {}
    for text, name in zip(given, names, strict=True):
        of_document.setdefault(name, []).append(text)
    with chosen.prepared([each for text in sources for each in text], of_document):
        return RedactionResults(_write(chosen, *parts) for parts in zip(given, found, sources, coverage, strict=True))


def check_redact_options(
    operators: Options | Operators | None = None,
    threshold: float = THRESHOLD,
    labels: Sequence[str] | None = None,
    documents: Sequence[str] | None = None,
    allow_special_tokens: bool = False,
) -> Operators:
    """Return the operators of a redaction. This needs no model.

    Raises:
        RequestError: An argument cannot be used.
        SettingError: The key in the settings cannot be read.
        MissingDependencyError: Surrogates are asked for, and Faker is not installed.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise RequestError(
            f"threshold must be a probability above 0 and up to 1, not {threshold!r}.",
            option="threshold",
            value=threshold,
        )
    for name, value in (("labels", labels), ("documents", documents)):
        if value is not None and not _is_list_of_texts(value):
            raise RequestError(f"{name} must be a list of texts.\nWrite it as: {name}=['...']", option=name)
    if labels is not None and not labels:
        raise RequestError("labels must name at least one label.\nLeave it out for all: labels=None", option="labels")
    check_flag("allow_special_tokens", allow_special_tokens)
    return parse_operators(operators)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value)


def _check_model(lease: Lease, labels: Sequence[str] | None) -> LabelScheme:
    """Return the labels of a model that may redact. Another model than a de-identifier needs `labels`."""
    name, tasks = lease.metadata.name, lease.metadata.tasks
    if not is_token_classifier(lease.model):
        raise RequestError(
            f"Model {name!r} is loaded as {type(lease.model).__name__}, which finds nothing to redact.\n"
            "List the models that do with: medvllm list --task deid",
            model=name,
        )
    scheme = read_labels(lease)
    if labels is None and "deid" not in tasks:
        has = f"has the task {tasks[0]!r}" if tasks else "has no entry that says what it finds"
        raise not_deid_error(lease, scheme, has, "redact only what it finds")
    return scheme


def _check_read(lease: Lease, tagged: TaggedText, position: int) -> None:
    """Raise an error if a part of a text was not read: it would look redacted, and be as it was."""
    if tagged.coverage.truncated:
        raise InputTooLongError(
            f"Text {position + 1} is longer than model {lease.metadata.name!r} reads, and its entry cuts long texts, "
            "so the rest would not be redacted.\nRegister it with: long_input='window'",
            model=lease.metadata.name,
            position=position,
        )
    unread = find_unread(tagged)
    if unread is not None:
        raise RequestError(
            f"Text {position + 1} was not read whole: the tokenizer of model {lease.metadata.name!r} leaves out "
            f"character {unread + 1:,}, so it cannot be redacted.\n"
            "Remove this character, or use a model whose tokenizer reads it.",
            model=lease.metadata.name,
            position=position,
        )


def _write(
    operators: Operators, text: str, findings: Sequence[Finding], sources: Sequence[Found], coverage: Coverage
) -> Redaction:
    """Return a text with its findings written over."""
    parts: list[str] = []
    items = []
    length = end = 0
    for finding, source in zip(findings, sources, strict=True):
        operator = operators.of(finding.label)
        new, reason, done = operator.write(source), None, operator.type
        if new is None:
            new, reason, done = Replace().write(source), operator.doubt, Replace.type
        parts += [text[end : finding.start], new]
        start = length + finding.start - end
        length, end = start + len(new), finding.end
        place = (start, length, finding.start, finding.end)
        items.append(RedactedItem(*place, finding.label, done, finding.score, reason))
    return Redaction("".join([*parts, text[end:]]), items, coverage)
