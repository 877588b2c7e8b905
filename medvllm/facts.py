"""The facts of an entry, in groups: each with its type and one line of help. Everything else follows this file.

`register` and `list_models` take the facts as flat keywords. `make docs` writes two files from the groups: the types of
these keywords (medvllm/typed_facts.py) and the JSON Schema of entry files (medvllm/catalog/entries.schema.json).
"""

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

PoolingMode = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"]


class Texts(Mapping[str, str]):
    """A frozen mapping of texts, hashable like the facts beside it."""

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


class Source(NamedTuple):
    """Where the bytes come from."""

    model_path: Annotated[str | None, "Repository id, hf:// link or folder. By default, the name itself."] = None
    revision: Annotated[str | None, "Commit, tag or branch of the repository."] = None
    base: Annotated[str | None, "The entry whose weights an adapter completes, if the model is an adapter."] = None
    also_known_as: Annotated[tuple[str, ...], "Other names of the same model, such as its repository's id."] = ()
    extra_files: Annotated[tuple[str, ...], "Globs of further files that a custom model class reads."] = ()
    requires: Annotated[tuple[str, ...], "Python packages, besides transformers, that the model needs."] = ()
    trust_remote_code: Annotated[
        bool | None, "Whether the repository's own code may run. `revision` must be a commit."
    ] = None


class Behaviour(NamedTuple):
    """How the model must be used, where its files do not say."""

    task: Annotated[
        str | None, "embed, fill-mask, ner, deid, classify, assertions, rerank, generate, or a word of your own."
    ] = None
    architecture: Annotated[str | None, "The config's `model_type`, for repositories that lack it."] = None
    do_lower_case: Annotated[bool | None, "Whether the tokenizer lowercases its input."] = None
    strip_accents: Annotated[bool | None, "Whether the tokenizer removes accents."] = None
    max_length: Annotated[int | None, "The longest input in tokens, special tokens included."] = None
    long_input: Annotated[
        Literal["window", "error", "truncate"] | None,
        "What happens to longer inputs: they are read in windows, refused, or truncated.",
    ] = None
    pooling: Annotated[
        PoolingMode | tuple[PoolingMode, ...] | None,
        "How token vectors become one vector. Several modes are concatenated.",
    ] = None
    normalize: Annotated[bool | None, "Whether vectors are scaled to unit length."] = None
    truncate_dim: Annotated[int | None, "How many dimensions of a vector are kept, from the first."] = None
    prompts: Annotated[Mapping[str, str] | None, "Texts that are put before an input, by name."] = None
    default_prompt_name: Annotated[str | None, "The prompt that is used when none is chosen."] = None
    include_prompt: Annotated[bool | None, "Whether pooling includes the prompt's tokens. True by default."] = None
    role: Annotated[Literal["query", "document"] | None, "Which side of a search the vectors are for."] = None
    similarity: Annotated[
        Literal["cosine", "dot", "euclidean", "manhattan"] | None, "How two vectors are compared. By default cosine."
    ] = None
    counterpart: Annotated[str | None, "The entry for the other side of the search."] = None
    inputs: Annotated[tuple[str, ...], "The parts of one input, in order, if it is not a single text."] = ()
    label_scheme: Annotated[
        Literal["BIO", "BILOU", "IO"] | None, "How the labels of a token classifier mark entities."
    ] = None
    id2label: Annotated[tuple[str, ...] | None, "The label of each class id, in order."] = None
    outside_label: Annotated[str | None, "The label of a token classifier that marks no entity. By default O."] = None
    aggregation: Annotated[
        Literal["first", "any", "max", "average", "simple"] | None,
        "How the labels of a word's pieces become the label of the word.",
    ] = None
    word_pattern: Annotated[
        str | None, "A regular expression for the words of a text, if the model was trained on words split beforehand."
    ] = None
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"] | None, "How a classifier's logits become its scores."
    ] = None
    entity_markers: Annotated[
        tuple[str, ...], "The two texts that stand before and after an entity that the model judges."
    ] = ()
    expected_missing_keys: Annotated[tuple[str, ...], "Globs of weights that the checkpoint may lack."] = ()
    unused_weights: Annotated[tuple[str, ...], "Globs of weights in the checkpoint that the model may ignore."] = ()


class License(NamedTuple):
    """Who may use the model. The licence is what the uploader declares. Restrictions on the data are kept beside it."""

    license: Annotated[str | None, "The licence, such as apache-2.0."] = None
    license_status: Annotated[Literal["declared", "undeclared", "unverified"] | None, "How certain the licence is."] = (
        None
    )
    data_restrictions: Annotated[tuple[str, ...], "Agreements that apply to the training data."] = ()
    use_restrictions: Annotated[tuple[str, ...], "Uses that the licence or the authors forbid."] = ()
    gated: Annotated[bool | None, "Whether the Hub asks for a token or an agreement first."] = None


class IntendedUse(NamedTuple):
    """What the model is for, and what it was trained on."""

    intended_use: Annotated[str | None, "What the authors made the model for."] = None
    languages: Annotated[tuple[str, ...], "Languages, as codes such as en."] = ()
    training_corpora: Annotated[tuple[str, ...], "What the model was trained on."] = ()
    citation: Annotated[str | None, "The publication to cite."] = None


class Memory(NamedTuple):
    """How the model is kept in memory."""

    keep_alive: Annotated[str | None, "How long an idle model stays in memory: 10m, seconds, 0, or -1 to pin it."] = (
        None
    )


class Lifecycle(NamedTuple):
    """What has been decided about the model since it was registered."""

    deprecated: Annotated[str | None, "Why the model should no longer be used."] = None
    successor: Annotated[str | None, "The model to use instead."] = None
    baseline_digest: Annotated[str | None, "SHA-256 over the files for which the baseline was recorded."] = None


# Named tuples, and no dataclasses: these are made in a fraction of the time, which every import pays.
GROUPS: dict[str, type[tuple[Any, ...]]] = {
    "source": Source,
    "behaviour": Behaviour,
    "license": License,
    "intended_use": IntendedUse,
    "memory": Memory,
    "lifecycle": Lifecycle,
}

# These fields can change in a stored version. A change of any other field makes a new version.
MUTABLE_FIELDS = ("tags", "values", "deprecated", "successor", "baseline", "baseline_digest")

# These identify an entry. They can be filtered by, but they are not facts.
IDENTIFYING = ("name", "origin", "version")

Class = type | str | None


class Fact(NamedTuple):
    """One keyword of `register`: the group that keeps it ("" for none), the type of its value, and one line of help."""

    group: str
    hint: Any
    help: str


_UNGROUPED: dict[str, tuple[Any, str]] = {
    "model_class": (Class, "The model's class, or its name as module:Class. By default, the checkpoint decides."),
    "config_class": (Class, "The config's class, or its name as module:Class. By default, the checkpoint decides."),
    "description": (str, "What the model is, in one sentence."),
    "tags": (list[str], "Words to filter by."),
    "values": (dict[str, str], "Your own keys, each with a text."),
    "parameters": (dict[str, Any], "Options that every load of this entry uses, such as a dtype."),
    "provenance": (dict[str, str], "For each fact, how certain it is and where it was seen."),
    "baseline": (list[dict[str, Any]], "Inputs with their recorded outputs. Written by medvllm baseline record."),
}


@cache
def known_facts() -> dict[str, Fact]:
    """Return every fact by its keyword."""
    known = {keyword: Fact("", hint, help) for keyword, (hint, help) in _UNGROUPED.items()}
    for group, kind in GROUPS.items():
        known |= {
            keyword: Fact(group, annotated.__origin__, annotated.__metadata__[0])
            for keyword, annotated in kind.__annotations__.items()
        }
    return known


@cache
def accepted_types(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: the members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
