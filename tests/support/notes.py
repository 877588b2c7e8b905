"""Synthetic clinical notes with their entities. Names, drugs and problems for training and for testing differ."""

import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

Offsets = tuple[int, int, str]

_SLOT = re.compile(r"\{(\w+)\}")

_TEMPLATES = (
    "{HOSPITAL} discharge summary. Patient {PATIENT} (MRN {ID}) was admitted on {DATE} for {PROBLEM}.",
    "Patient: {PATIENT} DOB: {DATE} Tel: {PHONE} Seen by Dr. {DOCTOR} for {PROBLEM} and {PROBLEM}.",
    "{PATIENT} was seen on {DATE} by Dr. {DOCTOR}. He was given {DRUG} for {PROBLEM}.",
    "Dr. {DOCTOR} started {DRUG} 75 mg daily; {DRUG} was stopped because of {PROBLEM}.",
    "No evidence of {PROBLEM}. Continue {DRUG}. Call {PHONE} with questions.",
    "Mrs. {PATIENT} takes {DRUG} and {DRUG} at home. Transferred to {HOSPITAL} on {DATE}.",
    "History of {PROBLEM}, treated with {DRUG} at {HOSPITAL} since {DATE}. Signed, {DOCTOR}",
    "Assessment: {PROBLEM} is improving on {DRUG}. Follow up with Dr. {DOCTOR} on {DATE}, phone {PHONE}.",
)
_LISTS = tomllib.loads((Path(__file__).parents[1] / "data" / "notes.toml").read_text())
PHI = ("PATIENT", "DOCTOR", "HOSPITAL", "DATE", "PHONE", "ID")
CLINICAL = ("DRUG", "PROBLEM")


@dataclass(frozen=True)
class Note:
    """A text, and its entities as start, end and label."""

    text: str
    entities: tuple[Offsets, ...]


def make_notes(count: int, split: str, seed: int = 0) -> list[Note]:
    """Return notes of one sentence or two. `split` is "train" or "test"."""
    chance = random.Random(f"{split} {seed}")
    return [_fill(chance.choice(_TEMPLATES), split, chance) for _ in range(count)]


def join_notes(notes: list[Note], separator: str = " ") -> Note:
    """Return notes as one long note."""
    text, entities = "", list[Offsets]()
    for note in notes:
        begin = len(text) + len(separator) if text else 0
        text += (separator if text else "") + note.text
        entities += [(start + begin, end + begin, label) for start, end, label in note.entities]
    return Note(text, tuple(entities))


def _fill(template: str, split: str, chance: random.Random) -> Note:
    text, entities, position = "", list[Offsets](), 0
    for slot in _SLOT.finditer(template):
        text += template[position : slot.start()]
        value = _value(slot[1], split, chance)
        entities.append((len(text), len(text) + len(value), slot[1]))
        text, position = text + value, slot.end()
    return Note(text + template[position:], tuple(entities))


def _value(label: str, split: str, chance: random.Random) -> str:
    lists = _LISTS[split]
    if label in ("PATIENT", "DOCTOR"):
        last = chance.choice(lists["last"])
        return str(last) if chance.random() < 0.3 else f"{chance.choice(lists['first'])} {last}"
    if label == "DATE":
        day, month, year = chance.randint(1, 28), chance.randint(1, 12), chance.randint(1930, 2089)
        return chance.choice(
            [
                f"{month:02}/{day:02}/{year}",
                f"{day} {_LISTS['months'][month - 1]} {year}",
                f"{year}-{month:02}-{day:02}",
            ]
        )
    if label == "PHONE":
        return f"555-{chance.randint(200, 999)}-{chance.randint(1000, 9999)}"
    if label == "ID":
        return str(chance.randint(1_000_000, 9_999_999))
    return str(chance.choice(lists[label]))
