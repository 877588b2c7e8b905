"""What is known of a model: its type and its metadata."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

from medvllm.classes import LazyClass, class_path
from medvllm.errors import RequestError
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
from medvllm.near_names import did_you_mean, near_names

__all__ = [
    "Behaviour",
    "IntendedUse",
    "License",
    "Lifecycle",
    "Memory",
    "ModelMetadata",
    "ModelType",
    "Origin",
    "Source",
    "fits",
]

Origin = Literal["process", "stored", "built-in", "direct"]


class ModelType(StrEnum):
    """What a model was made for."""

    GENERIC = "generic"
    BIOMEDICAL = "biomedical"
    CLINICAL = "clinical"
    CUSTOM = "custom"

    @classmethod
    def of(cls, value: "ModelType | str") -> "ModelType":
        """Return the type that a member or its name in any case stands for."""
        try:
            return cls(value.lower())
        except (ValueError, AttributeError):
            near = near_names(str(value), [str(kind) for kind in cls])
            raise RequestError(
                f"Model type {repr(value)[:80]} does not exist.{did_you_mean(near)}\n"
                f"Use one of: {', '.join(map(str, cls))}",
                value=value,
                candidates=tuple(near),
            ) from None


READ = "read from the folder"  # the provenance of facts that nobody stated


class Copied:
    """A dataclass field that gives a copy each time, so that a caller's edits stay the caller's."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    # A dataclass asks the descriptor on the class itself for the default: None, kept as an empty value.
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return None if instance is None else copy.deepcopy(instance.__dict__[self._key])

    def __set__(self, instance: object, value: Any) -> None:
        instance.__dict__[self._key] = self._kind() if value is None else copy.deepcopy(self._kind(value))


@dataclass(frozen=True, eq=False, repr=False)
class ModelMetadata:
    """The facts of one entry, frozen: nothing that is read from it can change the registry.

    `model_class` and `config_class` give the class, imported on access, or None when the checkpoint decides.
    """

    name: str
    model_type: ModelType
    model_class: LazyClass = LazyClass()
    config_class: LazyClass = LazyClass()
    description: str = ""
    tags: Copied = Copied(list)
    values: Copied = Copied(dict)  # a team's own keys, with a text each
    parameters: Copied = Copied(dict)
    source: Source = Source()
    behaviour: Behaviour = Behaviour()
    license: License = License()
    intended_use: IntendedUse = IntendedUse()
    memory: Memory = Memory()
    lifecycle: Lifecycle = Lifecycle()
    provenance: Copied = Copied(dict)  # fact -> "confidence: where it was seen"
    baseline: Copied = Copied(
        list
    )  # inputs with the outputs that were accepted, as `medvllm baseline record` records them
    version: int = 1
    origin: Origin = "process"

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
        """Return metadata made of flat keywords, as `register` and builtin.toml give them, each one checked."""
        grouped: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
        for keyword, value in facts.items():
            group, kept = check_fact(name, keyword, value)
            grouped[group][keyword] = kept
        plain = grouped.pop("")
        groups = {group: GROUPS[group](**kept) for group, kept in grouped.items() if kept}
        return cls(name, ModelType.of(model_type), version=version, origin=origin, **plain, **groups)

    def completed(self, facts: Mapping[str, Any]) -> "ModelMetadata":
        """Return the metadata with `facts` of its behaviour filled in where nothing is known yet.

        Prompts are filled in by their names.
        """
        unknown = {fact: value for fact, value in facts.items() if getattr(self.behaviour, fact) is None}
        if self.behaviour.prompts is not None and "prompts" in facts:
            unknown["prompts"] = Texts({**facts["prompts"], **self.behaviour.prompts})
        if self.behaviour.truncate_dim is not None:
            # What is cut after it was scaled is not of unit length.
            unknown.pop("normalize", None)
        return self.changed(behaviour=replace(self.behaviour, **unknown)) if unknown else self

    def stated(self) -> "ModelMetadata":
        """Return the metadata without the facts that were read from its folder: a load reads the folder anew."""
        provenance = self.__dict__["_provenance"]
        read = [fact for fact, how in provenance.items() if how == READ]
        if not read:
            return self
        unread = replace(self.behaviour, **{fact: getattr(Behaviour(), fact) for fact in read})
        return self.changed(
            behaviour=unread, _provenance={fact: how for fact, how in provenance.items() if how != READ}
        )

    def changed(self, **attributes: Any) -> "ModelMetadata":
        """Return a copy with other attributes; unlike `dataclasses.replace`, it imports no class."""
        other = copy.copy(self)
        for name, value in attributes.items():
            object.__setattr__(other, name, value)
        return other

    @property
    def class_paths(self) -> tuple[str | None, str | None]:
        """Model class and config class as ``"module:Class"``; nothing is imported."""
        return class_path(self.__dict__["_model_class"]), class_path(self.__dict__["_config_class"])

    @property
    def is_shipped(self) -> bool:
        """Whether the entry is installed with the program, and was not registered."""
        return self.origin == "built-in"

    @property
    def reference(self) -> str:
        """The name under which a stored entry is always this version; the plain name of another."""
        return f"{self.name}@{self.version}" if self.origin == "stored" else self.name

    @property
    def location(self) -> str:
        """Where the bytes come from: the model_path, or the name itself."""
        return self.source.model_path or self.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model is ready for: its task, and embedding where a pooling is known."""
        embeds = self.behaviour.pooling is not None and self.behaviour.task != "embed"
        return tuple(task for task in (self.behaviour.task, "embed" if embeds else None) if task)

    def fact(self, keyword: str) -> object:
        """Return a fact by its keyword: without a copy, as a listing asks each of perhaps 100,000 entries."""
        if keyword in IDENTIFYING:
            return getattr(self, keyword)
        group = known_facts()[keyword].group
        if group:
            return getattr(getattr(self, group), keyword)
        kept = self.__dict__[f"_{keyword}"] if f"_{keyword}" in self.__dict__ else getattr(self, keyword)
        return class_path(kept) if keyword.endswith("_class") else kept

    def facts(self) -> dict[str, Any]:
        """Return every fact that is known, by its keyword: what two entries of the same content share."""
        computed = (*IDENTIFYING, "tasks")
        return {fact: v for fact, v in self.to_dict().items() if fact not in computed and v not in (None, "", [], {})}

    @property
    def digest(self) -> str:
        """A short hash of every fact that is known."""
        return sha256(json.dumps(self.facts(), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return every fact as JSON has it: classes as references, facts that are not known as null."""
        model_class, config_class = self.class_paths
        flat: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "origin": self.origin,
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
            facts = vars(getattr(self, group))
            flat |= {key: _as_json(value) for key, value in facts.items()}
        return flat | {"provenance": self.provenance, "baseline": self.baseline}

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, ModelMetadata) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.version))

    def __repr__(self) -> str:
        return f"ModelMetadata({self.name!r}, {self.model_type.name}, {self.description!r})"


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def mentions(fact: Callable[[str], Any], text: str) -> bool:
    """Return whether a name of a model, or its description, has `text`, in any case; `fact` gives its facts."""
    said = (fact("name"), *(fact("also_known_as") or ()), fact("description") or "")
    return any(text in str(each).casefold() for each in said)


def fits(fact: Callable[[str], Any], task: str | None, tags: Sequence[str], globs: Mapping[str, str]) -> bool:
    """Return whether a model is ready for `task`, carries every one of `tags`, and each fact is as its glob.

    `fact` gives its facts by their keywords.
    """
    ready = task is None or task == fact("task") or (task == "embed" and fact("pooling") is not None)
    if ready and tags:
        own = fact("tags") or ()
        missing = [tag for tag in tags if tag not in own]
        ready = not missing or {f"{key}={value}" for key, value in (fact("values") or {}).items()}.issuperset(missing)
    return ready and all(matches_glob(fact(keyword), glob) for keyword, glob in globs.items())
