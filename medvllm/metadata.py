"""The metadata of a model: everything that is known about it."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from medvllm.classes import LazyClass, class_path
from medvllm.fact_filters import matches_glob
from medvllm.fact_values import check_fact
from medvllm.facts import (
    GROUPS,
    IDENTIFYING,
    Behaviour,
    IntendedUse,
    License,
    Lifecycle,
    Memory,
    Source,
    Texts,
    known_facts,
)
from medvllm.model_type import ModelType

__all__ = [
    "Behaviour",
    "IntendedUse",
    "License",
    "Lifecycle",
    "Memory",
    "ModelMetadata",
    "Origin",
    "Source",
    "matches_filters",
]

Origin = Literal["process", "stored", "package", "built-in", "direct"]
T = TypeVar("T")


READ = "read from the folder"  # the provenance of facts from the files of a folder


class Copied(Generic[T]):
    """A dataclass field of a mutable type. Each access returns a copy, so a caller's changes do not reach the entry."""

    def __init__(self, copied: Callable[..., T]) -> None:
        self._copied = copied  # called with a value, or without one for an empty value

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    def __get__(self, instance: object, owner: type | None = None) -> T:
        if instance is None:  # a dataclass reads the default from the class; None means an empty value
            return None  # type: ignore[return-value]
        return self._copied(instance.__dict__[self._key])

    def __set__(self, instance: object, value: T) -> None:
        instance.__dict__[self._key] = self._copied() if value is None else self._copied(value)


def _nested_dict(value: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return copy.deepcopy(dict(value))


def _dicts(value: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    return [_nested_dict(each) for each in value]


@dataclass(frozen=True, eq=False, repr=False)
class ModelMetadata:
    """The facts of one entry. It is immutable: lists and dicts are returned as copies.

    Attributes:
        name: The name under which the model is registered.
        model_type: The domain that it was made for.
        model_class: Its class, imported when it is read. None when the checkpoint decides.
        config_class: The class of its config. It works in the same way.
        description: What the model is, in one sentence.
        tags: Words to filter by.
        values: The team's own keys and their texts.
        parameters: Options that every load of this entry uses.
        source: Where the bytes come from.
        behaviour: How the model must be used.
        license: Who may use it.
        intended_use: What it is for, and what it was trained on.
        memory: How it is kept in memory.
        lifecycle: Whether it is deprecated, and other decisions about its use.
        provenance: For each fact, how certain it is and where it was seen.
        baseline: Inputs with their recorded outputs.
        version: The entry's version, from 1.
        origin: Where the entry comes from: this process, the stored catalogue, an installed package, or the built-in
            entries; "direct" for a model that is loaded without an entry.
        package: Name and version of the installed package that the entry comes from, such as "hospital-models 1.2".
    """

    name: str
    model_type: ModelType
    model_class: LazyClass = LazyClass()
    config_class: LazyClass = LazyClass()
    description: str = ""
    tags: Copied[list[str]] = Copied(list)
    values: Copied[dict[str, str]] = Copied(dict)
    parameters: Copied[dict[str, Any]] = Copied(_nested_dict)
    source: Source = Source()
    behaviour: Behaviour = Behaviour()
    license: License = License()
    intended_use: IntendedUse = IntendedUse()
    memory: Memory = Memory()
    lifecycle: Lifecycle = Lifecycle()
    provenance: Copied[dict[str, str]] = Copied(dict)
    baseline: Copied[list[dict[str, Any]]] = Copied(_dicts)
    version: int = 1
    origin: Origin = "process"
    package: str | None = None

    @classmethod
    def build(
        cls,
        name: str,
        model_type: ModelType | str,
        facts: Mapping[str, Any],
        *,
        version: int = 1,
        origin: Origin = "process",
    ) -> "ModelMetadata":
        """Return metadata from flat keywords, as `register` and builtin.toml give them. Each fact is checked.

        Args:
            name: The entry's name.
            model_type: Its type, or the name of one.
            facts: The facts by their keywords.
            version: The entry's version.
            origin: Where the entry comes from.

        Raises:
            RequestError: A fact does not exist or has a wrong value.
        """
        grouped: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
        for keyword, value in facts.items():
            group, kept = check_fact(name, keyword, value)
            grouped[group][keyword] = kept
        plain = grouped.pop("")
        groups: dict[str, Any] = {group: GROUPS[group](**kept) for group, kept in grouped.items() if kept}
        return cls(name, ModelType.of(model_type), version=version, origin=origin, **plain, **groups)

    def with_missing_facts(self, facts: Mapping[str, Any]) -> "ModelMetadata":
        """Return a copy that adds facts about the behaviour which the entry does not have.

        Prompts are added one by one: the entry's own prompt of a name is kept.

        Args:
            facts: Facts of `behaviour` by their keywords.
        """
        unknown = {fact: value for fact, value in facts.items() if getattr(self.behaviour, fact) is None}
        if self.behaviour.prompts is not None and "prompts" in facts:
            unknown["prompts"] = Texts({**facts["prompts"], **self.behaviour.prompts})
        if self.behaviour.truncate_dim is not None:
            unknown.pop("normalize", None)  # a vector that is truncated after scaling no longer has unit length
        return self.with_facts(**unknown) if unknown else self

    def without_folder_facts(self) -> "ModelMetadata":
        """Return a copy without the facts that were read from the folder. Each load reads them again."""
        provenance = self.__dict__["_provenance"]
        read = [fact for fact, how in provenance.items() if how == READ]
        if not read:
            return self
        unread: dict[str, Any] = {fact: getattr(Behaviour(), fact) for fact in read}
        return self.with_facts(**unread, provenance={fact: how for fact, how in provenance.items() if how != READ})

    def with_facts(self, **facts: Any) -> "ModelMetadata":
        """Return a copy with other values for some facts. The values are not checked."""
        attributes: dict[str, Any] = {}
        for keyword, value in facts.items():
            if group := known_facts()[keyword].group:
                attributes[group] = attributes.get(group, getattr(self, group))._replace(**{keyword: value})
            else:
                attributes[keyword] = value
        return self.with_attributes(**attributes)

    def with_attributes(self, **attributes: Any) -> "ModelMetadata":
        """Return a copy with other attributes. Unlike `dataclasses.replace`, this imports no class."""
        other = copy.copy(self)
        for name, value in attributes.items():
            object.__setattr__(other, name, value)
        return other

    @property
    def class_paths(self) -> tuple[str | None, str | None]:
        """Model class and config class as "module:Class", without importing them."""
        return class_path(self.__dict__["_model_class"]), class_path(self.__dict__["_config_class"])

    @property
    def is_shipped(self) -> bool:
        """Whether the entry comes with medvllm or an installed package, and was not registered."""
        return self.origin in ("package", "built-in")

    @property
    def reference(self) -> str:
        """The name that always means this version: name@version for a stored entry, else the plain name."""
        return f"{self.name}@{self.version}" if self.origin == "stored" else self.name

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter: small weights that complete those of its base, another entry."""
        return self.source.base is not None

    @property
    def location(self) -> str:
        """Where the bytes come from: `model_path`, or else the name."""
        return self.source.model_path or self.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model can do: its own, and "embed" if its pooling is known."""
        embeds = self.behaviour.pooling is not None and self.behaviour.task != "embed"
        return tuple(task for task in (self.behaviour.task, "embed" if embeds else None) if task)

    def fact(self, keyword: str) -> object:
        """Return a fact by its keyword. The value is not copied, because a listing may read 100,000 entries."""
        if keyword in IDENTIFYING:
            return getattr(self, keyword)
        group = known_facts()[keyword].group
        if group:
            return getattr(getattr(self, group), keyword)
        kept = self.__dict__[f"_{keyword}"] if f"_{keyword}" in self.__dict__ else getattr(self, keyword)
        return class_path(kept) if keyword.endswith("_class") else kept

    def facts(self) -> dict[str, Any]:
        """Return every known fact by its keyword. Two entries with equal facts have the same content."""
        computed = (*IDENTIFYING, "package", "tasks")
        return {fact: v for fact, v in self.to_dict().items() if fact not in computed and v not in (None, "", [], {})}

    @property
    def digest(self) -> str:
        """A short hash of every known fact."""
        from hashlib import sha256  # importing OpenSSL takes longer than a whole listing

        return sha256(json.dumps(self.facts(), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return every fact as JSON values: classes as "module:Class", unknown facts as None."""
        model_class, config_class = self.class_paths
        flat: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "origin": self.origin,
            **({} if self.package is None else {"package": self.package}),
            "model_type": str(self.model_type),
            "description": self.description,
            "tags": self.tags,
            "values": self.values,
            "tasks": list(self.tasks),
            "model_class": model_class,
            "config_class": config_class,
            "parameters": json.loads(json.dumps(self.parameters, default=str)),
        }
        for group in GROUPS:
            flat |= {keyword: _to_json(value) for keyword, value in getattr(self, group)._asdict().items()}
        return flat | {"provenance": self.provenance, "baseline": self.baseline}

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, ModelMetadata) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.version))

    def __repr__(self) -> str:
        return f"ModelMetadata({self.name!r}, {self.model_type.name}, {self.description!r})"


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def mentions_text(fact: Callable[[str], Any], text: str) -> bool:
    """Return whether one of a model's names, or its description, contains a text.

    Args:
        fact: Returns a fact of the model by its keyword.
        text: The text, in lower case.
    """
    said = (fact("name"), *(fact("also_known_as") or ()), fact("description") or "")
    return any(text in str(each).casefold() for each in said)


def matches_filters(
    fact: Callable[[str], Any], task: str | None, tags: Sequence[str], globs: Mapping[str, str]
) -> bool:
    """Return whether a model passes every filter.

    Args:
        fact: Returns a fact of the model by its keyword.
        task: A task that the model must be able to do; None for any.
        tags: Tags that it must have, or key=value pairs that its `values` must contain. All of them must match.
        globs: The glob that each fact must match, as `to_glob` returns it.
    """
    ready = task is None or task == fact("task") or (task == "embed" and fact("pooling") is not None)
    if ready and tags:
        own = fact("tags") or ()
        missing = [tag for tag in tags if tag not in own]
        ready = not missing or (
            all("=" in tag for tag in missing)
            and {f"{key}={value}" for key, value in (fact("values") or {}).items()}.issuperset(missing)
        )
    return ready and all(matches_glob(fact(keyword), glob) for keyword, glob in globs.items())
