"""The facts of an entry in their groups, and the check that each one is what it should be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medvllm.classes import is_reference
from medvllm.errors import RequestError, nearest, offer
from medvllm.words import usual

PoolingMode = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]


class Texts(Mapping[str, str]):
    """Texts by name, frozen like the facts that it stands among."""

    __slots__ = ("_texts",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = dict(texts)

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __hash__(self) -> int:
        return hash(frozenset(self._texts.items()))

    def __repr__(self) -> str:
        return repr(self._texts)


@dataclass(frozen=True)
class Source:
    """Where the bytes come from."""

    model_path: str | None = None  # repository id, hf://…, or folder; None: the name itself
    revision: str | None = None  # commit, tag or branch; a commit where one was seen
    also_known_as: tuple[str, ...] = ()  # other names of the same model, such as its repository's id
    extra_files: tuple[str, ...] = ()  # globs of files beside the model's that a class of one's own reads
    requires: tuple[str, ...] = ()  # Python packages beside transformers, without which it does not load
    trust_remote_code: bool | None = None  # whether the repository's own code may run; `revision` pins it


@dataclass(frozen=True)
class Behaviour:
    """What the files alone do not say, and without which the model behaves differently than its authors meant."""

    task: str | None = None  # embed, fill-mask, ner, deid, classify, rerank, generate, or a word of one's own
    architecture: str | None = None  # the config's `model_type`, for repositories that lack it
    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    max_length: int | None = None  # tokens, special tokens included
    long_input: Literal["window", "error", "truncate"] | None = None
    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None  # how tokens become a vector; several are joined
    normalize: bool | None = None  # whether vectors are scaled to unit length
    truncate_dim: int | None = None  # how many numbers of a vector are kept, from its beginning
    prompts: Mapping[str, str] | None = None  # what is put in front of a text, by name
    default_prompt_name: str | None = None  # the prompt that is used when none is chosen
    include_prompt: bool | None = None  # whether the prompt's own tokens are pooled; they are, unless this is false
    role: Literal["query", "document"] | None = None  # which side of a search the vectors are for
    counterpart: str | None = None  # the entry of the other side
    inputs: tuple[str, ...] = ()  # what is given, in order, where that is not one plain text
    label_scheme: Literal["BIO", "BILOU", "IO"] | None = None
    id2label: tuple[str, ...] | None = None  # the label of each class id, in order
    expected_missing_keys: tuple[str, ...] = ()  # glob patterns of weights that the checkpoint rightly lacks
    unused_weights: tuple[str, ...] = ()  # glob patterns of weights that the model rightly does not use


@dataclass(frozen=True)
class License:
    """Who may use it. A licence is the uploader's claim; restrictions on the training data stand beside it."""

    license: str | None = None
    license_status: Literal["declared", "undeclared", "unverified"] | None = None
    data_restrictions: tuple[str, ...] = ()  # agreements that bind the training data
    use_restrictions: tuple[str, ...] = ()  # what the licence or the authors forbid
    gated: bool | None = None


@dataclass(frozen=True)
class IntendedUse:
    """What it is for, and what it was made from."""

    intended_use: str | None = None
    languages: tuple[str, ...] = ()
    training_corpora: tuple[str, ...] = ()
    citation: str | None = None


@dataclass(frozen=True)
class Memory:
    """How it is kept in memory: an operator's choice."""

    keep_alive: str | None = None  # how long it stays when idle: "10m", seconds, "0", or negative to pin it


@dataclass(frozen=True)
class Lifecycle:
    """What has been decided of it since."""

    deprecated: str | None = None  # why it is not to be used any more
    successor: str | None = None  # the model to use in its place
    baseline_digest: str | None = None  # SHA-256 over the files that its acceptance tests were recorded with


GROUPS: dict[str, type] = {
    "source": Source,
    "behaviour": Behaviour,
    "license": License,
    "intended_use": IntendedUse,
    "memory": Memory,
    "lifecycle": Lifecycle,
}

# What may change in a stored version; everything else makes the next one.
MUTABLE_FIELDS = ("tags", "values", "deprecated", "successor", "baseline", "baseline_digest")

# What tells entries apart and is no fact of theirs; it can be asked for.
IDENTIFYING = ("name", "origin", "version")

Class = type | str | None
_PLAIN: dict[str, Any] = {
    "model_class": Class,
    "config_class": Class,
    "description": str,
    "tags": list[str],
    "values": dict[str, str],
    "parameters": dict[str, Any],
    "provenance": dict[str, str],
    "baseline": list[dict[str, Any]],
}


@cache
def keywords() -> dict[str, tuple[str, Any]]:
    """Return every keyword that describes an entry -> the group it belongs to ("" for none), and its type."""
    known: dict[str, tuple[str, Any]] = {keyword: ("", hint) for keyword, hint in _PLAIN.items()}
    for group, kind in GROUPS.items():
        hints = get_type_hints(kind)
        known |= {f.name: (group, hints[f.name]) for f in fields(kind)}
    return known


def checked(model: str, keyword: str, value: Any) -> tuple[str, Any]:
    """Return the keyword's group and its value in the form it is kept in, or raise RequestError."""
    if keyword not in keywords():
        raise _unknown(keyword, f"keyword {keyword!r} for model {model!r}", keywords())
    group, hint = keywords()[keyword]
    options, value = _options(hint), usual(model, keyword, value)
    for option in options:
        fits, kept = _fit(option, value)
        if fits and not (hint is Class and isinstance(value, str) and not is_reference(value)):
            return group, kept
    wanted = "a class or 'module:Class'" if hint is Class else " or ".join(map(_described, options))
    # A prompt's text stays out of every message.
    shown = type(value).__name__ if keyword == "prompts" else repr(value)[:80]
    raise RequestError(f"Keyword {keyword!r} of model {model!r} must be {wanted}, not {shown}.", keyword=keyword)


def listed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with one text made a list of one where texts are wanted: tags="bert" is tags=["bert"]."""
    plural = {fact for fact, (_, hint) in keywords().items() if _options(hint)[0] in (list[str], tuple[str, ...])}
    plural -= {"id2label"}  # a head of one class is a slip
    return {fact: [value] if fact in plural and isinstance(value, str) else value for fact, value in facts.items()}


def check_glob(what: str, glob: object) -> str:
    """Return a glob if it is one that can be looked for, or raise RequestError: to compile one takes its length twice.

    A text without a * ? or [ is compared as it is, and may be of any length.
    """
    if not isinstance(glob, str):
        raise RequestError(f"Filter {what!r} must be text, such as 'bio*', not {type(glob).__name__}.", option=what)
    if len(glob) > _MAX_GLOB and not _WILD.isdisjoint(glob):
        raise RequestError(
            f"The pattern of filter {what!r} has {len(glob):,} characters; {_MAX_GLOB:,} are allowed.", option=what
        )
    return glob


_MAX_GLOB = 1000
_WILD = frozenset("*?[")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _known_word(keyword: str, text: str) -> str:
    """Return a filter's word as it is used here; RequestError: no entry can have it."""
    text = str(usual("", keyword, text)) if keyword == "label_scheme" else text
    words = _words(keyword)
    if words and text.casefold() not in map(str.casefold, words):
        near = nearest(text, words)
        raise RequestError(
            f"Fact {keyword!r} is never {text[:80]!r}.{offer(near)}\nIt is one of: {', '.join(words)}",
            keyword=keyword,
            candidates=tuple(near),
        )
    return text


@cache
def _words(keyword: str) -> tuple[str, ...]:
    """Return the only words that a fact can be, or nothing."""
    if keyword == "origin":
        return ("process", "stored", "built-in")
    for option in _options(keywords()[keyword][1]) if keyword in keywords() else ():
        choice = get_args(option)[0] if get_origin(option) is tuple else option
        if choice is bool or get_origin(choice) is Literal:
            return ("True", "False") if choice is bool else get_args(choice)
    return ()


def pattern(keyword: str, value: object) -> str:
    """Return a filter's value as a glob in lower case, "" for what is not known, or raise RequestError."""
    single = [
        known
        for known, (_, hint) in keywords().items()
        if not {dict, Mapping}.intersection((get_origin(hint), *map(get_origin, get_args(hint))))
    ]
    single += IDENTIFYING
    if keyword not in single:
        raise _unknown(keyword, f"fact {keyword!r} to filter by", single)
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise RequestError(
            f"Filter {keyword!r} must be one text, number, True, False or None, not {type(value).__name__}.",
            keyword=keyword,
        )
    text = check_glob(keyword, str(value))
    if _WILD.isdisjoint(text):
        text = _known_word(keyword, text)
    return text.casefold()


def matches(value: object, glob: str) -> bool:
    """Return whether a fact, or one item of it, is what `pattern` gave."""
    if not glob:
        return value in (None, "", (), [])
    items = value if isinstance(value, (tuple, list)) else (value,)
    if _WILD.isdisjoint(glob):
        return any(item not in (None, "") and str(item).casefold() == glob for item in items)
    return any(item not in (None, "") and fnmatchcase(str(item).casefold(), glob) for item in items)


def _unknown(keyword: str, what: str, known: Iterable[str]) -> RequestError:
    near = nearest(keyword, known)
    return RequestError(
        f"Unknown {what}.{offer(near)}\nIt takes: {', '.join(sorted(known))}", keyword=keyword, candidates=tuple(near)
    )


def _fit(option: Any, value: Any) -> tuple[bool, Any]:
    """Return whether `value` is of the type `option`, and the form it is kept in."""
    origin = get_origin(option) or option
    if origin is Literal:
        return isinstance(value, str) and value in get_args(option), value
    if origin in (tuple, list):
        item = get_args(option)[0]
        if get_origin(item) is Literal:
            fits = isinstance(value, (tuple, list)) and bool(value) and all(_fit(item, each)[0] for each in value)
            kept = tuple(value) if fits else ()
            return fits, kept[0] if len(kept) == 1 else kept
        kind = get_origin(item) or str
        fits = isinstance(value, (tuple, list)) and all(type(each) is kind for each in value)
        return fits, origin(value) if fits else None
    if origin in (dict, Mapping):
        texts = get_args(option)[1] is str
        fits = isinstance(value, Mapping) and all(
            type(key) is str and (type(each) is str or not texts) for key, each in value.items()
        )
        return fits, (dict if origin is dict else Texts)(value) if fits else None
    if option is int:
        return type(value) is int and value > 0, value
    if option in (str, bool):
        return type(value) is option, value
    return isinstance(value, option), value  # a class, or None


def _described(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(repr, get_args(option)))
    if get_origin(option) is tuple and get_origin(get_args(option)[0]) is Literal:
        return "a list of these"
    return {
        str: "text",
        int: "a whole number above 0",
        bool: "True or False",
        NoneType: "None",
        tuple: "a list of texts",
        list: "a list of dicts" if option == list[dict[str, Any]] else "a list of texts",
        dict: "a dict of texts" if option == dict[str, str] else "a dict with text keys",
        Mapping: "a dict of texts",
    }[get_origin(option) or option]
