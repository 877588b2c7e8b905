"""The facts of an entry, in groups. Everything that names or types a fact is made from this file.

`register` and `list_models` take the facts as flat keywords. `make docs` writes two files from the groups: the types of
these keywords (medvllm/typed_facts.py) and the JSON Schema of entry files (medvllm/catalog/entries.schema.json).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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


def _fact(help: str, default: Any = None) -> Any:
    """Return a field of a group, with the one line that editors and documents show for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Source:
    """Where the bytes come from."""

    model_path: str | None = _fact("Repository id, hf:// link or folder. By default, the name itself.")
    revision: str | None = _fact("Commit, tag or branch of the repository.")
    also_known_as: tuple[str, ...] = _fact("Other names of the same model, such as its repository's id.", ())
    extra_files: tuple[str, ...] = _fact("Globs of further files that a custom model class reads.", ())
    requires: tuple[str, ...] = _fact("Python packages, besides transformers, that the model needs.", ())
    trust_remote_code: bool | None = _fact("Whether the repository's own code may run. `revision` must be a commit.")


@dataclass(frozen=True)
class Behaviour:
    """How the model must be used, where its files do not say."""

    task: str | None = _fact("embed, fill-mask, ner, deid, classify, rerank, generate, or a word of your own.")
    architecture: str | None = _fact("The config's `model_type`, for repositories that lack it.")
    do_lower_case: bool | None = _fact("Whether the tokenizer lowercases its input.")
    strip_accents: bool | None = _fact("Whether the tokenizer removes accents.")
    max_length: int | None = _fact("The longest input in tokens, special tokens included.")
    long_input: Literal["window", "error", "truncate"] | None = _fact(
        "What happens to longer inputs: they are read in windows, refused, or truncated."
    )
    pooling: PoolingMode | tuple[PoolingMode, ...] | None = _fact(
        "How token vectors become one vector. Several modes are concatenated."
    )
    normalize: bool | None = _fact("Whether vectors are scaled to unit length.")
    truncate_dim: int | None = _fact("How many dimensions of a vector are kept, from the first.")
    prompts: Mapping[str, str] | None = _fact("Texts that are put before an input, by name.")
    default_prompt_name: str | None = _fact("The prompt that is used when none is chosen.")
    include_prompt: bool | None = _fact("Whether pooling includes the prompt's tokens. True by default.")
    role: Literal["query", "document"] | None = _fact("Which side of a search the vectors are for.")
    counterpart: str | None = _fact("The entry for the other side of the search.")
    inputs: tuple[str, ...] = _fact("The parts of one input, in order, if it is not a single text.", ())
    label_scheme: Literal["BIO", "BILOU", "IO"] | None = _fact("How the labels of a token classifier mark entities.")
    id2label: tuple[str, ...] | None = _fact("The label of each class id, in order.")
    expected_missing_keys: tuple[str, ...] = _fact("Globs of weights that the checkpoint may lack.", ())
    unused_weights: tuple[str, ...] = _fact("Globs of weights in the checkpoint that the model may ignore.", ())


@dataclass(frozen=True)
class License:
    """Who may use the model. The licence is what the uploader declares. Restrictions on the data are kept beside it."""

    license: str | None = _fact("The licence, such as apache-2.0.")
    license_status: Literal["declared", "undeclared", "unverified"] | None = _fact("How certain the licence is.")
    data_restrictions: tuple[str, ...] = _fact("Agreements that apply to the training data.", ())
    use_restrictions: tuple[str, ...] = _fact("Uses that the licence or the authors forbid.", ())
    gated: bool | None = _fact("Whether the Hub asks for a token or an agreement first.")


@dataclass(frozen=True)
class IntendedUse:
    """What the model is for, and what it was trained on."""

    intended_use: str | None = _fact("What the authors made the model for.")
    languages: tuple[str, ...] = _fact("Languages, as codes such as en.", ())
    training_corpora: tuple[str, ...] = _fact("What the model was trained on.", ())
    citation: str | None = _fact("The publication to cite.")


@dataclass(frozen=True)
class Memory:
    """How the model is kept in memory."""

    keep_alive: str | None = _fact("How long an idle model stays in memory: 10m, seconds, 0, or -1 to pin it.")


@dataclass(frozen=True)
class Lifecycle:
    """What has been decided about the model since it was registered."""

    deprecated: str | None = _fact("Why the model should no longer be used.")
    successor: str | None = _fact("The model to use instead.")
    baseline_digest: str | None = _fact("SHA-256 over the files for which the baseline was recorded.")


GROUPS: dict[str, type] = {
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


@dataclass(frozen=True)
class Fact:
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
        hints = get_type_hints(kind)
        known |= {f.name: Fact(group, hints[f.name], f.metadata["help"]) for f in fields(kind)}
    return known


def accepted_types(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: the members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
