"""How the labels of a token classifier mark entities: where in an entity a word is, what the entity is, or neither."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from medvllm.lazy import lazy

UNNAMED = "ENTITY"  # for a tagger with one type, whose labels are just B and I

# The letters of a position, and medvllm's own for each: begin, inside, end, single.
_PLACES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_BIO = frozenset("BI")
_SEPARATORS = "-_"
# The labels of tokens that are no text, such as [CLS].
_SPECIAL = re.compile(r"\[(CLS|SEP|PAD|UNK)\]|<(s|/s|pad|unk)>", re.IGNORECASE)
# Labels that mark no entity, in groups: the first group with a label in the map decides. So OTHER is a type if there
# is an O.
_OUTSIDE = ({"o"}, {"0"}, {"outside", "out", "other", "none", "null", "no", "non-entity", "no-entity", "not-entity"})


class OutsideUnclear(ValueError):
    """The labels do not tell which of them marks no entity."""


class Mark(NamedTuple):
    """What a label says of a word: its place in an entity (B, I, E or S), and the type of the entity."""

    place: str
    kind: str


@dataclass(frozen=True)
class LabelScheme:
    """What each label of a token classifier means.

    Attributes:
        name: "BIO", "BILOU" or "IO".
        labels: The labels, in the order of their class ids.
        marks: For each class id, its mark; None if it marks no entity.
    """

    name: str
    labels: tuple[str, ...]
    marks: tuple[Mark | None, ...]

    @lazy
    def kinds(self) -> tuple[str, ...]:
        """The types of entities, in the order of the labels."""
        return tuple(dict.fromkeys(mark.kind for mark in self.marks if mark))


def read_scheme(labels: Sequence[str], scheme: str | None = None, outside: str | None = None) -> LabelScheme:
    """Return what the labels mean. A scheme is only inferred if all labels fit it.

    Args:
        labels: The labels, in the order of their class ids.
        scheme: The entry's `label_scheme`.
        outside: The entry's `outside_label`.

    Raises:
        ValueError: The labels do not follow the scheme, or do not tell which one they follow. The message is the
            reason, for a longer message.
    """
    free = _find_outside(labels, outside)
    inside = [label for label in dict.fromkeys(labels) if label not in free]
    if scheme is None:
        name, marks = _infer(inside)
    else:
        name, marks = scheme, _follow(inside, scheme)
    return LabelScheme(name, tuple(labels), tuple(marks.get(label) for label in labels))


def _find_outside(labels: Sequence[str], stated: str | None) -> Collection[str]:
    """Return the labels that mark no entity."""
    special = {label for label in labels if _SPECIAL.fullmatch(label)}
    if stated is not None:
        if stated not in labels:
            raise OutsideUnclear(f"none of them is the entry's outside_label {stated!r}")
        return special | {stated}
    for group in _OUTSIDE:
        found = {label for label in labels if label.casefold().replace("_", "-") in group}
        if len(found) > 1:
            raise OutsideUnclear(f"{' and '.join(map(repr, sorted(found)))} may both mark what is no entity")
        if found:
            return special | found
    raise OutsideUnclear("none of them is 'O'")


def _readings(labels: Sequence[str]) -> list[dict[str, tuple[str, str]]]:
    """Return the ways to read the labels that have a position: label -> (letter of the position, type)."""
    readings = []
    for separator in _SEPARATORS:
        for pattern in (rf"(?P<place>[a-z]){separator}(?P<kind>.+)", rf"(?P<kind>.+){separator}(?P<place>[a-z])"):
            matches = {label: re.fullmatch(pattern, label, re.IGNORECASE | re.DOTALL) for label in labels}
            reading = {label: (match["place"].upper(), match["kind"]) for label, match in matches.items() if match}
            reading |= {label: (label.upper(), UNNAMED) for label in labels if re.fullmatch("[a-z]", label, re.I)}
            readings.append({label: mark for label, mark in reading.items() if mark[0] in _PLACES})
    return sorted(readings, key=len, reverse=True)


def _infer(labels: Sequence[str]) -> tuple[str, dict[str, Mark]]:
    """Return the scheme that all labels fit, and the mark of each label."""
    readings = _readings(labels)
    complete = [reading for reading in readings if labels and len(reading) == len(labels)]
    for reading in complete:
        if name := _plausible_scheme(reading):
            return name, _marks(reading)
    marked = readings[0]
    if _has_places(marked):
        misfit = next((label for label in labels if label not in marked), None)
        if misfit is None:
            raise ValueError(f"their positions {', '.join(sorted(_letters(marked)))} are of no scheme")
        raise ValueError(f"{next(iter(marked))!r} marks a position, and {misfit!r} does not")
    if complete and _letters(complete[0]) <= _BIO:
        raise ValueError("some types have only a B, others only an I")
    # A letter and a dash in some names, such as E-MAIL beside PHONE, is no position.
    return "IO", {label: Mark("I", label) for label in labels}


def _plausible_scheme(reading: dict[str, tuple[str, str]]) -> str | None:
    """Return the scheme whose positions the labels have as a trained model has them, or None."""
    letters, kinds = _letters(reading), _places_by_kind(reading)
    if letters <= _BIO:
        # Each type has the same single position, or one of them has both.
        return "BIO" if len(letters) == 1 or _has_places(reading) else None
    # A type with a middle or an end has a beginning, and where entities begin, some end.
    orphan = any(places & {"I", "E"} and "B" not in places for places in kinds.values())
    endless = "B" in letters and not letters & {"E", "L"}
    return None if orphan or endless else "BILOU"


def _follow(labels: Sequence[str], scheme: str) -> dict[str, Mark]:
    """Return the mark of each label under a scheme that is stated.

    Raises:
        ValueError: A label does not fit.
    """
    marked = _readings(labels)[0]
    if scheme == "IO":
        only_inside = len(marked) == len(labels) and _letters(marked) == {"I"}
        if labels and (only_inside or _has_places(marked)):
            raise ValueError(f"{next(iter(marked))!r} marks a position with {next(iter(marked.values()))[0]}")
        return {label: Mark("I", label) for label in labels}
    if plain := next((label for label in labels if label not in marked), None):
        raise ValueError(f"{plain!r} has no position mark such as B or I")
    letters = _letters(marked)
    if scheme == "BIO":
        if other := next((label for label in labels if marked[label][0] not in _BIO), None):
            raise ValueError(f"{other!r} belongs to BILOU")
    elif letters and letters <= _BIO:
        raise ValueError("none of them begins with L, U, E or S")
    return _marks(marked)


def _marks(reading: dict[str, tuple[str, str]]) -> dict[str, Mark]:
    return {label: Mark(_PLACES[letter], kind) for label, (letter, kind) in reading.items()}


def _letters(reading: dict[str, tuple[str, str]]) -> set[str]:
    return {letter for letter, _ in reading.values()}


def _places_by_kind(reading: dict[str, tuple[str, str]]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for letter, kind in reading.values():
        kinds.setdefault(kind, set()).add(_PLACES[letter])
    return kinds


def _has_places(reading: dict[str, tuple[str, str]]) -> bool:
    """Return whether a type has labels for two positions, which names do not have by chance."""
    return any(len(places) > 1 for places in _places_by_kind(reading).values())


def label_map(config: Any) -> dict[int, str] | None:
    """Return the label of each class id; None if the config has only LABEL_0, LABEL_1, …, which mean nothing."""
    labels = getattr(config, "id2label", None) or {}
    return None if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()) else dict(labels)
