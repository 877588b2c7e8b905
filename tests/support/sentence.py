"""The folders of tests/data/sentence, put together; see make_sentence_folders.py for what they are."""

import json
import shutil
from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "sentence"

# None of them is a patient's.
TEXTS = [
    "the patient was given Aspirin for fever",
    "ALS",
    "als of the café",
    "",
    " ",
    "\n\t ",
    "  Chest pain,  left lung;  NO fever  ",
    "naïve é fièvre 日本 😀 É İ Σ ς ΑΣ",
    "a [MASK] is [SEP] in <s> the <mask> lung",
    "x\u00a0y\u200bz \u0301e",
    "no history of diabetes mellitus and shortness of breath with chest pain and no cancer " * 3,
    "the query : ALS",
]


def cases() -> dict[str, dict[str, str]]:
    """The files of each case, by their path in its folder."""
    found: dict[str, dict[str, str]] = json.loads((DATA / "cases.json").read_text())
    return found


def assembled(case: str, folder: Path) -> Path:
    """The folder of a case."""
    for path, name in cases()[case].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "files" / name, folder / path)
    return folder
