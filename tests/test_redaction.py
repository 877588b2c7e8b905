"""Redaction: what identifies someone goes, everything else stays as it is, and what was not read is an error."""

import hmac
import json
import logging
import math
import os
import re
import stat
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from medvllm.corpora.rows import Row
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.corpus_run import CorpusRun
from medvllm.engine.model_runner.redaction.dates import shift_dates
from medvllm.engine.model_runner.redaction.extents import Extents
from medvllm.engine.model_runner.redaction.operators import Found, Surrogate, parse_operators
from medvllm.engine.model_runner.redaction.results import Redaction
from medvllm.engine.model_runner.redaction.vault import Vaults
from medvllm.engine.model_runner.tagging.tagged_text import label_words
from medvllm.errors import InputTooLongError, LoadError, OutputError, RequestError, SettingError
from tests.support import kinds, standins, taggers, tiny
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.notes import PHI, join_notes, make_notes
from tests.support.spread import spread

LABELS = ["O", "B-NAME", "I-NAME", "B-DATE", "I-DATE", "B-ID"]
KEY = "0123456789abcdef"
_SHARPNESS = 20.0  # of the labels: what a piece has for sure has a probability of 1 - 2e-9


def _pieces(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


def write_tagger(folder: Path, pieces: Mapping[str, tuple[str, float]], **trouble: Any) -> Path:
    """A tagger that gives each piece of its vocabulary the label, and the probability, that `pieces` says."""
    tiny.bert_token_classifier(folder, LABELS, **trouble)
    file = folder / "model.safetensors"
    state = load_file(file)
    for name, tensor in state.items():
        tensor.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    for number, piece in enumerate(_pieces(folder)):
        label, probability = pieces.get(piece, ("O", 1.0))
        parts = {label: 1.0}
        if probability < 1:
            tilt = math.pi / 4 + math.asin(math.log(probability / (1 - probability)) / _SHARPNESS / math.sqrt(2))
            parts = {label: math.sin(tilt), "O": math.cos(tilt)}
        for each, size in parts.items():
            place = LABELS.index(each)
            state["bert.embeddings.word_embeddings.weight"][number, [place, 16 + place]] = torch.tensor([size, -size])
    for place in range(len(LABELS)):
        state["classifier.weight"][place, [place, 16 + place]] = torch.tensor([1.0, -1.0]) * _SHARPNESS / 8
    save_file(state, file, {"format": "pt"})
    return folder


# Names begin with J or S, or have an x inside; 7 is the beginning of a number, other digits are dates.
PIECES: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("J", "S", "##x"), ("B-NAME", 1.0)),
    **{f"{begin}{digit}": ("B-DATE", 1.0) for digit in "12345689" for begin in ("", "##")},
    **dict.fromkeys(("7", "##7"), ("B-ID", 1.0)),
    "Q": ("I-NAME", 0.3),
    "Z": ("I-NAME", 0.1),
    "-": ("I-NAME", 0.3),
    "/": ("I-DATE", 0.9),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagger(tmp_path_factory.mktemp("tagger") / "m", PIECES)


@pytest.fixture
def runner(registry: ModelRegistry, folder: Path) -> ModelRunner:
    """A de-identifier that is sure of what it says."""
    registry.register("deid", "clinical", model_path=str(folder), task="deid", do_lower_case=False, label_scheme="BIO")
    return ModelRunner("deid", registry=registry)


def redact(runner: ModelRunner, text: str, **options: Any) -> str:
    """A redacted text, after a check that its items say exactly what was done."""
    (result,) = runner.redact([text], **options)
    check_report(text, result)
    return result.text


def check_report(text: str, result: Redaction) -> None:
    """Everything outside of the items is what it was, in its order."""
    place = source_place = 0
    for item in result.items:
        assert item.source_start < item.source_end and item.start <= item.end
        assert result.text[place : item.start] == text[source_place : item.source_start]
        place, source_place = item.end, item.source_end
    assert result.text[place:] == text[source_place:]
    assert result.coverage.read in (((0, len(text)),), ()) and not result.coverage.truncated


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seen by Smith and Jones", "seen by [NAME] and [NAME]"),
        ("John Smith", "[NAME]"),
        ("John\tSmith\nJones", "[NAME]\n[NAME]"),
        ("Dr.Smith (Jones) a:Smith", "Dr.[NAME] ([NAME]) a:[NAME]"),
        ("axe the annex", "[NAME] the [NAME]"),  # any piece of a word
        ("Smith-was, O'Smith, Smith’s", "[NAME], [NAME], [NAME]’s"),
        ("on 03/14/2019, 3.5", "on [DATE], [DATE]"),
        ("a 77 b", "a [ID] b"),
        ("Q Z", "[NAME] Z"),  # 0.3 and 0.1
        ("a - b", "a - b"),  # a sign with 0.3: more likely none
        ("a / b", "a [DATE] b"),
        ("Jose\u0301, S\u00admith, S\u200bm", "[NAME], [NAME], [NAME]"),
        ("", ""),
        (" \n\t", " \n\t"),
        ("chest pain", "chest pain"),
    ],
)
def test_words_are_redacted_whole(runner: ModelRunner, text: str, expected: str) -> None:
    """If any piece is likely, the word goes, with what hyphens join to it; neighbours are one item."""
    assert redact(runner, text) == expected


def test_a_threshold_and_labels_say_what_counts(runner: ModelRunner) -> None:
    text = "Z Q Smith 3"
    assert redact(runner, text, threshold=0.05) == "[NAME] [DATE]"
    assert redact(runner, text, threshold=0.9) == "Z Q [NAME] [DATE]"
    assert redact(runner, text, labels=["DATE"]) == "Z Q Smith [DATE]"
    (result,) = runner.redact(["a Q b"])
    assert [(item.label, item.operator, round(item.score, 2)) for item in result.items] == [("NAME", "replace", 0.3)]


def test_what_the_vocabulary_lacks_is_redacted(runner: ModelRunner) -> None:
    """An unknown word tells the model nothing, so it may be a name. A sign is none."""
    assert redact(runner, "seen by Łukasz 😀 → 李") == "seen by [NAME] 😀 → [NAME]"


def test_marks_of_an_earlier_redaction_stay(runner: ModelRunner) -> None:
    """MIMIC's, and ours: a redacted text stays as it is."""
    text = "[**Known lastname 3**] saw ___ on [**2151-7-16**], Smith ___\nJones [NAME] [**Name (S)\n**]"
    expected = "[**Known lastname 3**] saw ___ on [**2151-7-16**], [NAME] ___\n[NAME] [NAME] [**Name (S)\n**]"
    assert redact(runner, text) == expected
    assert redact(runner, expected) == expected
    hidden = {"DEFAULT": {"type": "replace", "new_value": "<Jx>"}}
    assert redact(runner, redact(runner, "Smith S", operators=hidden), operators=hidden) == "<Jx>"
    assert redact(runner, "_Smith__ a", operators=None) == "_[NAME]__ a"


@pytest.mark.parametrize("written", ["x", "S", "7", "Sm"])
def test_what_is_written_is_no_mark_inside_of_a_word(runner: ModelRunner, written: str) -> None:
    """Or names with a letter of it, and numbers with a digit of it, would be seen in their redactions."""
    operators = {"DEFAULT": {"type": "replace", "new_value": written}}
    result = redact(runner, "Sxm, Smax a S-Sm, x-J 17-7-17, Jones", operators=operators)
    assert result == f"{written}, {written} a {written}, {written} {written}, {written}"
    assert redact(runner, result, operators=operators) == result


NOTE = "Smith saw Jones on 03/14/2019; MRN 7777"


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ({"DATE": {"type": "keep"}}, "[NAME] saw [NAME] on 03/14/2019; MRN [ID]"),
        ({"DEFAULT": {"type": "redact"}}, " saw  on ; MRN "),
        ({"DEFAULT": {"type": "mask"}}, "***** saw ***** on **********; MRN ****"),
        ({"NAME": {"type": "mask", "masking_char": "█"}}, "█████ saw █████ on [DATE]; MRN [ID]"),
        ({"NAME": {"type": "replace", "new_value": "X"}}, "X saw X on [DATE]; MRN [ID]"),
        ({"NAME": {"type": "replace", "new_value": ""}}, " saw  on [DATE]; MRN [ID]"),
        ({"DATE": {"type": "shift_dates", "days": 10}}, "[NAME] saw [NAME] on 03/24/2019; MRN [ID]"),
    ],
)
def test_an_operator_says_what_is_written(runner: ModelRunner, operators: Any, expected: str) -> None:
    assert redact(runner, NOTE, operators=operators) == expected
    assert runner.run("redact", [NOTE], operators=operators)[0].text == expected


def test_hashes_are_keyed(runner: ModelRunner, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal names have equal hashes, another key gives others; without a key there is none."""
    spec: dict[str, Any] = {"DEFAULT": {"type": "keep"}, "NAME": {"type": "hash", "key": KEY, "length": 20}}
    digest = hmac.new(KEY.encode(), b"Smith", "sha256").hexdigest()[:20]
    assert redact(runner, "Smith, Jones, Smith", operators=spec).split(", ")[::2] == [digest, digest]
    other = {"NAME": {"type": "hash", "key": KEY[::-1].encode()}}
    assert digest[:16] not in redact(runner, "Smith", operators=other)
    with pytest.raises(RequestError, match="'hash' needs a key.*\n.*MEDVLLM_REDACTION_KEY_FILE"):
        runner.redact(["Smith"], operators={"NAME": {"type": "hash"}})
    file = home / "key"
    monkeypatch.setenv("MEDVLLM_REDACTION_KEY_FILE", str(file))
    with pytest.raises(SettingError, match="cannot be read: No such file.*\n.*openssl rand"):
        runner.redact(["Smith"], operators={"NAME": {"type": "hash"}})
    file.write_text("short\n")
    with pytest.raises(SettingError, match="has 5 bytes; it needs 16") as caught:
        runner.redact(["Smith"], operators={"NAME": {"type": "hash"}})
    assert "short" not in str(caught.value)
    file.write_text(KEY + "\n")
    assert redact(runner, "Smith", operators={"NAME": {"type": "hash", "length": 20}}) == digest


def test_operators_are_read_once(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may come from a pipe, which gives it once; a wrong one is refused before the model is loaded."""

    def pipe(content: bytes) -> int:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        monkeypatch.setenv("MEDVLLM_REDACTION_KEY_FILE", f"/dev/fd/{reading}")
        return reading

    digest = hmac.new(KEY.encode(), b"Smith", "sha256").hexdigest()[:16]
    reading = pipe(KEY.encode())
    assert redact(runner, "Smith", operators={"NAME": {"type": "hash"}}) == digest
    os.close(reading)
    reading = pipe(KEY.encode())
    rows = [Row("x" * 200_000, "line 1"), Row("Smith", "line 2")]
    options = {"operators": {"NAME": {"type": "hash"}}, "labels": ["NAME"]}
    *_, last = CorpusRun("deid", rows, "redact", arguments=options, registry=runner._registry)
    assert last.texts() == [digest]
    os.close(reading)
    reading = pipe(b"short")
    with pytest.raises(SettingError):
        ModelRunner("acme/not-there").redact(["Smith"], operators={"NAME": {"type": "hash"}})
    os.close(reading)


def test_surrogates_are_consistent_in_their_scope(runner: ModelRunner) -> None:
    """Word by word, whatever the case; never the source; others in another document, seed or call without a seed."""

    def surrogates(texts: Sequence[str], **options: Any) -> list[str]:
        spec = {"NAME": {"type": "surrogate"} | options, "DATE": {"type": "keep"}}
        results = runner.redact(texts, operators=spec)
        for text, result in zip(texts, results, strict=True):
            check_report(text, result)
            given, found = (set(re.findall(r"\w+", each.lower())) for each in (text, result.text))
            assert not given & found
        return [result.text for result in results]

    texts = ["John Smith; Smith, John; SMITH; Jones", "John Smith"]
    one, other = surrogates(texts, seed=7)
    (first, last), *rest, third = (re.findall(r"\w+", part) for part in one.split("; "))
    assert rest == [[last, first], [last.upper()]] and len({first, last, *third}) == 3
    assert other != f"{first} {last}" and surrogates(texts, seed=7) == [one, other] != surrogates(texts, seed="8")
    assert surrogates(texts) != surrogates(texts)
    assert surrogates(texts, seed=7, scope="call")[1] == " ".join(
        re.findall(r"\w+", surrogates(texts, seed=7, scope="call")[0])[:2]
    )
    assert surrogates(["Jones Smith"], seed=1, locale="ja_JP")[0].isascii() is False


_NAMES = st.text("abcdeé", min_size=2, max_size=6).map(str.title)


@given(st.lists(_NAMES, min_size=1, max_size=40, unique_by=str.casefold))
@settings(max_examples=20, deadline=None)
def test_different_names_have_different_surrogates(names: list[str]) -> None:
    operator = Surrogate(seed=3)
    found = [Found(name, "PATIENT", "") for name in names]
    operator.prepare(found, Vaults())
    made = [operator.write(each) for each in found]
    assert None not in made and len({str(each).casefold() for each in made}) == len(names)
    assert not {str(each).casefold() for each in made} & {name.casefold() for name in names}


@pytest.mark.parametrize(
    ("label", "source", "pattern"),
    [
        ("DOCTOR", "Dr. J. SMITH, MD", r"Dr\. [A-Z]\. [^a-z]+, MD"),
        ("DOCTOR", "Smith’s", r"[A-Z]\w+’s"),
        ("DOCTOR", "O'BRIEN'S (JIM) & CO", r"[^a-z]+'S \([^a-z]+\) & [^a-z]+"),
        ("STAFF", "van der Berg", r"\w+"),
        ("HCW", "mary o'brien-jones", r"[^A-Z]+ [^A-Z]+-[^A-Z]+"),
        ("PHONE", "(617) 555-1234 x5", r"\(\d{3}\) \d{3}-\d{4} [a-z]\d"),
        ("MEDICALRECORD", "AB-0012/c", r"[A-Z]{2}-\d{4}/[a-z]"),
        ("PATIENT_ID", "S12", r"[A-Z]\d\d"),
        ("US_SSN", "123-45-6789", r"\d{3}-\d\d-\d{4}"),
        ("AGE", "45-year-old", r"4\d-year-old"),
        ("AGE", "97", r"8\d"),
        ("AGE", "forty", None),
        ("DATE", "Monday, 4 March 2019", r"\w+day, \d+ \w+ \d{4}"),
        ("DATE", "03/04/19", r"\d\d/\d\d/\d\d"),
        ("DATE", "spring", None),
        ("HOSPITAL", "Mercy Medical Center", r".+ Medical Center"),
        ("HOSP", "MGH", r"[^a-z]+ HOSPITAL"),
        ("EMAIL", "john.smith@clinic.com", r"[\w.-]+@example\.org"),
        ("PATIENT", "john@clinic.com", r"[\w.-]+@example\.org"),
        ("URL", "http://x.y/z", r"https://[\w.-]+\.example\.org"),
        ("IP_ADDRESS", "10.0.0.1", r"\d+\.\d+\.\d+\.\d+"),
        ("LOC", "BOSTON", r"[^a-z]+"),
        ("STREET", "12 Main Street", r".+"),
        ("STATE", "Ohio", r".+"),
        ("COUNTRY", "France", r".+"),
        ("PROFESSION", "teacher", r"[^A-Z]+"),
        ("USERNAME", "jsmith", r"\w+"),
        ("PATORG", "Acme", r".+"),
        ("OTHERPHI", "anything", None),
    ],
)
def test_a_surrogate_is_of_the_same_kind(label: str, source: str, pattern: str | None) -> None:
    """By its label, in its form; what has no kind gets none, so that it is replaced."""
    for locale in ("en_US", "de_DE"):
        for seed in range(5):
            operator, found = Surrogate(seed=seed, locale=locale), Found(source, label, "d")
            operator.prepare([found], Vaults())
            made = operator.write(found)
            assert made == operator.write(found)
            assert (made is None) == (pattern is None)
            assert made is None or (made != source and re.fullmatch(pattern or "", made)), made


def test_a_document_in_several_chunks_has_one_set_of_surrogates() -> None:
    """Equal names stay equal, and different ones different, also if a chunk lacks the names of the others."""
    names = ["Smith", "Jones", "John", "Mary", "Miller", "Brown", "Davis", "James", "Robert", "Linda", "Susan", "David"]
    for seed in range(50):
        operator, made = Surrogate(seed=seed), dict[str, set[str | None]]()
        for chunk in (names[:4], [*names[4:8], "Mary", "Smith"], [*names[8:], "Mary", "Smith"]):
            found = [Found(name, "NAME", "patient 12") for name in chunk]
            with Vaults() as vaults:
                operator.prepare(found, vaults)
                for each in found:
                    made.setdefault(each.source, set()).add(operator.write(each))
        assert all(len(new) == 1 for new in made.values())
        assert len(set(chain.from_iterable(made.values()))) == len(names)


def test_a_surrogate_is_no_word_of_the_texts(runner: ModelRunner) -> None:
    """Also if the model misses a name: nobody takes a real one for a surrogate."""
    from faker.providers.person.en_US import Provider

    missed = [name for name in Provider.last_names if not re.search("[JSQZx]", name)]
    assert len(missed) > 700
    for scope in ("document", "call"):
        spec = {"NAME": {"type": "surrogate", "seed": 1, "scope": scope}}
        texts = ["Smith", " ".join(missed)]
        made = runner.redact(texts, operators=spec, documents=["one", "one"])[0].text
        assert made not in missed and made != "Smith"


def test_no_two_names_have_one_surrogate() -> None:
    """Also if there are more than Faker has, or if they have several labels; dates of all labels move together."""
    names = [f"N{first}{second}" for first in "abcdefgh" for second in "ijklmnop"]
    operator = Surrogate(seed=1, scope="call", locale="en_NG")
    found = [Found(name, "PATIENT", name) for name in names] + [Found(name, "STATE", name) for name in names]
    operator.prepare(found, Vaults())
    made = [str(operator.write(each)).casefold() for each in found[: len(names)]]
    assert len({*made}) == len(names) and "none" not in made
    states = [new for each in found[len(names) :] if (new := operator.write(each)) is not None]
    assert len({*states}) == len(states)
    spec = {label: {"type": "surrogate"} for label in ("PATIENT", "DOCTOR")}
    operators = parse_operators(
        spec | {"DATE": {"type": "shift_dates"}, "DOB": {"type": "shift_dates", "date_order": "dmy"}}
    )
    assert operators.of("PATIENT") is operators.of("DOCTOR") is not operators.of("DATE")
    moved = {operators.of(label).write(Found("2019-03-14", label, "d")) for label in ("DATE", "DOB")}
    assert len(moved) == 1 and moved != {"2019-03-14"}


def test_a_late_name_that_equals_a_surrogate_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """In a later chunk of the document, once, and without the name."""
    operator = Surrogate(seed=1)
    operator.prepare([Found("Smith", "NAME", "d")], Vaults())
    late = str(operator.write(Found("Smith", "NAME", "d")))
    operator.prepare([Found(late, "NAME", "other")], Vaults())
    assert not caplog.records
    for _ in range(2):
        operator.prepare([Found(late, "NAME", "d")], Vaults())
        assert operator.write(Found(late, "NAME", "d")) not in (late, None)
    [record] = caplog.records
    assert '"scope": "call"' in record.message and late not in record.message


def test_a_vault_keeps_surrogates_between_calls(runner: ModelRunner, tmp_path: Path) -> None:
    """Without any source; for its owner only; with its key only; also if threads share it."""
    vault = tmp_path / "new" / "vault.json"
    spec = {"NAME": {"type": "surrogate", "vault": str(vault), "key": KEY}, "DATE": {"type": "keep"}}
    first = redact(runner, "Smith and Jones", operators=spec)
    assert redact(runner, "Jones", operators=spec) == first.split()[-1]
    content = vault.read_text()
    assert stat.S_IMODE(vault.stat().st_mode) == 0o600
    assert "mith" not in content.casefold()
    assert set(json.loads(content)["surrogates"].values()) == {*first.split()} - {"and"}
    both = {"NAME": spec["NAME"], "ID": spec["NAME"], "DEFAULT": {"type": "keep"}}
    assert redact(runner, "Jones 77", operators=both).startswith(first.split()[-1])
    other = {"NAME": spec["NAME"], "ID": spec["NAME"] | {"key": KEY * 2}}
    with pytest.raises(RequestError, match="was made with another key"):
        redact(runner, "Jones 77", operators=other)
    names = [f"J{letter}" for letter in "abcdefgh"]
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(lambda name: redact(runner, name, operators=spec), names)]
    assert [redact(runner, name, operators=spec) for name in names] == made
    with pytest.raises(RequestError, match="was made with another key"):
        redact(runner, "Jones", operators={"NAME": {**spec["NAME"], "key": KEY[::-1]}})
    with pytest.raises(RequestError, match="needs a key"):
        redact(runner, "Jones", operators={"NAME": {"type": "surrogate", "vault": str(vault)}})
    vault.write_text("{}")
    with pytest.raises(RequestError, match="is not a vault"):
        redact(runner, "Jones", operators=spec)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used: "):
        redact(runner, "Jones", operators={"NAME": {**spec["NAME"], "vault": str(tmp_path / "file" / "vault")}})


_MONTHS = {
    "de": "Januar Februar März Maerz Mai Juni Juli Oktober Dezember Jän Mär Mrz Okt Dez",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre janv févr avr déc",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre ene abr ago dic",
    "it": "gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre gen mag giu lug set ott",
    "pt": "janeiro fevereiro março maio junho julho setembro outubro novembro dezembro fev mai out dez",
    "nl": "januari februari maart mei juni juli augustus oktober mrt okt",
}
_WAYS = ("14 {} 2019", "14. {} 2019", "14 de {} de 2019", "{} 14, 2019", "14-{}-19", "14 {}", "1/2/2019, 14 {} 2019")
_FOREIGN = [
    *(
        way.format(form(month))
        for months in _MONTHS.values()
        for month in months.split()
        for way in _WAYS
        for form in (str, str.upper)
    ),
    *("Dienstag, 3. April 2019", "lundi 14/03/2019", "lun 14/03/2019", "do 14-03-2019", "Mo., 14.03.2019"),
    *("le 14/03/2019", "am 14.03.2019", "14 III 2019", "2019年3月14日", "١٤/٠٣/٢٠١٩", "14 марта 2019", "1er avril"),
    *("vom 3. bis 5. April 2019", "3 au 5 Nov 2019", "3./4. April 2019", "14.03.2019 à 14h30", "14.03.2019, 14 Uhr"),
]


@pytest.mark.parametrize(
    ("text", "order", "expected"),
    [
        ("03/14/2019", None, "03/24/2019"),
        ("3/14/2019", None, "3/24/2019"),
        ("03/04/2019", None, None),
        ("03/04/2019", "mdy", "03/14/2019"),
        ("03/04/2019", "dmy", "13/04/2019"),
        ("03/03/2019", None, None),
        ("13/04/2019", "mdy", None),
        ("25/12/19", None, None),
        ("25/12/19", "dmy", "04/01/20"),
        ("25.12.2019", None, "04.01.2020"),
        ("03/14/2019", "ymd", "03/24/2019"),
        ("2019-12-25T14:30:00Z", None, "2020-01-04T14:30:00Z"),
        ("2019/12/25 at 2:30 pm", None, "2020/01/04 at 2:30 pm"),
        ("20191225", None, "20200104"),
        ("3rd of May, 2019", None, "13th of May, 2019"),
        ("MAY 22ND 2019", None, "JUNE 1ST 2019"),
        ("12-Mar-19", None, "22-Mar-19"),
        ("Feb. 12, '19", None, "Feb. 22, '19"),
        ("Monday, March 4, 2019", None, "Thursday, March 14, 2019"),
        ("Tuesday, March 4, 2019", None, None),
        ("sun", None, "wed"),
        ("May 3", None, "May 13"),
        ("Feb 25", None, None),
        ("2/28/00", "mdy", None),
        ("3/14", None, None),
        ("3/14", "dmy", None),
        ("3/14", "mdy", "3/24"),
        ("3/14/2019 - 3/20/2019", None, "3/24/2019 - 3/30/2019"),
        ("from 3 May 2019 to 5 May 2019", None, "from 13 May 2019 to 15 May 2019"),
        ("12/31/9999", None, None),
        ("3. April 2019", None, "13. April 2019"),  # as English writes it, too
        ("Mar 5", None, "Mar 15"),
        ("mar 5, 2019", None, "mar 15, 2019"),
        ("Mar/14/19", None, "Mar/24/19"),
        ("Mar 14 19", None, "Mar 24 19"),
        ("Tue, mar 5", None, "Fri, mar 15"),
        *(
            (text, None, None)
            for text in ("mar 5", "mar. 5", "mar. 14/03", "Mar. 14/03", "Mar 14.03", "mar 14/03/2019")
        ),
        *((text, None, None) for text in ("92", "1932", "2019", "May 2019", "3-5 May 2019", "14:30", "02/30/2019", "")),
    ],
)
def test_a_date_moves_in_its_own_format(text: str, order: Any, expected: str | None) -> None:
    """If it can be read in one way. An age is no date; "mar. 14/03" may be a Tuesday."""
    assert shift_dates(text, 10, order) == expected


def test_no_date_with_a_foreign_name_is_moved_or_kept() -> None:
    """Whole or in part, whatever the order: it has no shifted form, so that it is replaced."""
    for text in _FOREIGN:
        assert {shift_dates(text, days, order) for days in (10, -40) for order in (None, "mdy", "dmy")} == {None}, text


@given(
    st.dates(date(1100, 1, 1), date(2900, 1, 1)),
    st.integers(-3000, 3000),
    st.sampled_from(["%-d %B %Y", "%Y-%m-%d", "%A, %-d %B %Y", "%B %-d, %Y", "%Y%m%d"]),
)
def test_shifting_back_restores_a_date(day: date, days: int, form: str) -> None:
    if form == "%Y%m%d" and not (1920 < day.year < 2180):
        return
    assert shift_dates(day.strftime(form), days) == (day + timedelta(days)).strftime(form)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S" * 100_000, 1),
        ("a." * 50_000, 100_000),
        ("1-" * 50_000, 2),
        ("\u200b" * 100_000, 100_000),
        ("S\u0301" * 50_000, 1),
        ("a@" * 50_000, 50_000),
        ("www." * 25_000, 2),
        ("a'" * 50_000, 2),
    ],
)
def test_words_of_a_long_text_are_found(text: str, words: int) -> None:
    """100,000 characters without a blank, for which a pattern that tries every beginning would take hours."""
    assert len(Extents(text).words(0, len(text))) == words


@pytest.mark.parametrize("name", [name for name in standins.STANDINS if "deid" in name])
def test_a_built_in_deidentifier_runs_by_name(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    """On a stand-in of its repository; its labels are of kinds that have surrogates."""
    hub.add(name, convert(standins.STANDINS[name](tmp_path / "m")))
    spec: Any = {"DEFAULT": {"type": "surrogate", "seed": 1}, "DATE": {"type": "shift_dates"}}
    runner, text = ModelRunner(name, registry=registry), "Seen by Dr. Mary Jones on 10/12/2080."
    (result,) = runner.redact([text], operators=spec, threshold=0.001)
    check_report(text, result)
    assert "Mary" not in result.text and "2080" not in result.text


def test_dates_of_a_document_move_together(runner: ModelRunner) -> None:
    """The number of days follows from the key and the document; what is no certain date is replaced, and said."""
    spec = {"DATE": {"type": "shift_dates", "key": KEY, "date_order": "mdy"}}
    texts = ["on 03/14/2019 and 03/16/2019", "on 03/14/2019 a"]
    one, other = (result.text for result in runner.redact(texts, operators=spec))
    days = [int(re.findall(r"\d+", one)[i]) for i in (1, 4)]
    assert (days[1] - days[0]) % 28 in (2, 0, 1, 27) and one[:13] != other[:13] and "03/14/2019" not in one + other
    same = runner.redact(texts, operators=spec, documents=["p1", "p1"])
    assert same[0].text[:13] == same[1].text[:13] == redact(runner, "on 03/14/2019", operators=spec, documents=["p1"])
    (result,) = runner.redact(["on 2019 a"], operators=spec)
    assert result.text == "on [DATE] a"
    assert (result.items[0].operator, result.items[0].reason) == (
        "replace",
        "no date that can be read in one way only",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": {"DEFAULT": {"type": "hsh"}}}, "no operator 'hsh'. Did you mean: 'hash'"),
        (
            {"operators": {"DEFAULT": {"type": "mask", "masking": "x"}}},
            "Did you mean: 'masking_char'",
        ),
        ({"operators": {"DEFAULT": {"type": "mask", "masking_char": "xy"}}}, "one visible character, not 'xy'"),
        ({"operators": {"DEFAULT": {"type": "mask", "masking_char": "\u0301"}}}, "one visible character"),
        ({"operators": {"DEFAULT": {"type": "replace", "new_value": 3}}}, "must be a text, not 3"),
        ({"operators": {"DEFAULT": {"type": "hash", "key": KEY, "length": 3}}}, "from 8 to 64, not 3"),
        ({"operators": {"DEFAULT": {"type": "hash", "key": "kkk"}}}, "at least 16 bytes; it has 3"),
        ({"operators": {"DEFAULT": {"type": "hash", "key": 3}}}, "at least 16 bytes; it is int"),
        ({"operators": {"DEFAULT": {"type": "surrogate", "scope": "cal"}}}, "not 'cal'. Did you mean: 'call'"),
        (
            {"operators": {"DEFAULT": {"type": "surrogate", "locale": "de_DEE"}}},
            "Did you mean: 'de_DE'",
        ),
        ({"operators": {"DEFAULT": {"type": "surrogate", "vault": "v", "scope": "call"}}}, "a scope and a vault"),
        ({"operators": {"DEFAULT": {"type": "shift_dates", "days": True}}}, "other than 0, not True"),
        ({"operators": {"DEFAULT": {"type": "shift_dates", "date_order": "myd"}}}, "Did you mean: 'dmy'"),
        ({"operators": {"DEFAULT": {}}}, "has no type.\nWrite them as: operators="),
        ({"operators": {"default": {"type": "keep"}}}, "Did you mean: 'DEFAULT'?"),
        ({"operators": "replace"}, "must map labels to operators, not be str"),
        ({"threshold": 0}, "above 0 and up to 1, not 0"),
        ({"threshold": math.nan}, "above 0 and up to 1, not nan"),
        ({"labels": []}, "at least one label"),
        ({"labels": "NAME"}, "labels must be a list of texts"),
        ({"documents": [1]}, "documents must be a list of texts"),
        ({"operatrs": {}}, "takes no argument 'operatrs'. Did you mean: 'operators'"),
    ],
)
def test_options_are_checked_before_the_model_loads(registry: ModelRegistry, options: Any, message: str) -> None:
    """Here, the model does not even exist."""
    with pytest.raises(RequestError, match=re.escape(message)):
        ModelRunner("./nothing", registry=registry).run("redact", ["Smith"], **options)


def test_labels_are_those_of_the_model(runner: ModelRunner) -> None:
    with pytest.raises(RequestError, match=r"'deid' has no label 'NAMES'. Did .*'NAME'\?\nIts labels: NAME, DATE"):
        runner.redact(["x"], operators={"NAMES": {"type": "keep"}})
    with pytest.raises(RequestError, match="no label 'DATES'. Did you mean: 'DATE'"):
        runner.redact(["x"], labels=["DATES"])
    with pytest.raises(RequestError, match="there are 1 names and 2 texts"):
        runner.redact(["x", "y"], documents=["a"])


def test_another_model_than_a_deidentifier_is_refused(registry: ModelRegistry, folder: Path, tmp_path: Path) -> None:
    """A tagger of something else leaves names where they are. It redacts what it finds if the caller says so."""
    registry.register("ner", "clinical", model_path=str(folder), task="ner", do_lower_case=False, label_scheme="BIO")
    for name in ("ner", folder):
        with pytest.raises(RequestError, match=r"task='deid'\n.*labels=\['NAME', 'DATE', 'ID'\]"):
            ModelRunner(name, registry=registry).redact(["Smith 3"])
    assert redact(ModelRunner("ner", registry=registry), "Smith 3", labels=["DATE"]) == "Smith [DATE]"
    encoder = tiny.bert_masked_lm(tmp_path / "mlm")
    with pytest.raises(RequestError, match="BertForMaskedLM, which finds nothing to redact.\nList .* --task deid"):
        ModelRunner(encoder, registry=registry).redact(["Smith"], labels=["NAME"])


def test_what_was_not_read_is_an_error(registry: ModelRegistry, folder: Path, tmp_path: Path) -> None:
    """Never a note that is redacted to the middle: a long text that is cut, dropped letters, NaN."""
    facts: Any = {"task": "deid", "do_lower_case": False, "label_scheme": "BIO"}
    registry.register("cut", "clinical", model_path=str(folder), long_input="truncate", **facts)
    with pytest.raises(InputTooLongError, match="Text 2 is longer .*\n.*long_input='window'"):
        ModelRunner("cut", registry=registry).redact(["a", "was " * 80 + "Smith"])
    file = kinds.write(tmp_path / "r", "RobertaForTokenClassification") / "tokenizer.json"
    normalizer = {"type": "Replace", "pattern": {"String": "Q"}, "content": ""}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    dropping = ModelRunner(tmp_path / "r", registry=registry)
    with pytest.raises(RequestError, match="Text 1 was not read whole: .* leaves out character 3,"):
        dropping.redact(["a Q b"], labels=["DRUG"])
    assert dropping.redact(["a b"], labels=["DRUG"])
    broken = tiny.copy(folder, tmp_path / "nan")
    state = load_file(broken / "model.safetensors")
    state["bert.embeddings.word_embeddings.weight"][_pieces(broken).index("fever")] = math.nan
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    registry.register("nan", "clinical", model_path=str(broken), **facts)
    with pytest.raises(LoadError, match="NaN or infinity for text 2"):
        ModelRunner("nan", registry=registry).redact(["Smith", "Smith fever"])


_LETTERS = [*"JSxQab7312 -/.,'_[]*\n\r\t\u0301\u200d\u00ad😀李ไÉ", "___", "[**S**]", "[NAME]"]
_SOUP = st.lists(st.sampled_from(_LETTERS), max_size=40).map("".join) | st.text(max_size=30)
_MARK = re.compile(r"\[\*\*[^\[\]*]{0,120}\*\*\]|___+|\[(NAME|DATE|ID|DRUG)\]")
_SPECS: list[Any] = [
    None,
    {"DEFAULT": {"type": "redact"}, "DATE": {"type": "keep"}},
    {"DEFAULT": {"type": "mask", "masking_char": "#"}},
    {"DEFAULT": {"type": "surrogate", "seed": 1}, "DATE": {"type": "shift_dates", "key": KEY}},
    {"DEFAULT": {"type": "hash", "key": KEY}},
]


@pytest.fixture(scope="module")
def two_runners(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ModelRunner]:
    """WordPiece, and bytes with random labels."""
    registry = ModelRegistry()
    other = kinds.write(tmp_path_factory.mktemp("tagger") / "r", "RobertaForTokenClassification")
    registry.register("a", "clinical", model_path=str(folder), task="deid", do_lower_case=False, label_scheme="BIO")
    registry.register("b", "clinical", model_path=str(other), task="deid", label_scheme="BIO")
    return [ModelRunner(name, registry=registry) for name in "ab"]


@given(texts=st.lists(_SOUP, min_size=1, max_size=4), which=st.integers(0, 1), operators=st.sampled_from(_SPECS))
@settings(max_examples=50, deadline=None)
def test_any_text_keeps_what_is_outside_and_nothing_else(
    two_runners: list[ModelRunner], texts: list[str], which: int, operators: Any
) -> None:
    """All outside of the items stays, no labelled letter does, no character is cut; the batch does not matter."""
    runner = two_runners[which]
    spec = operators and {label: each for label, each in operators.items() if which == 0 or label == "DEFAULT"}
    options: dict[str, Any] = {"operators": spec, "threshold": 0.2 if which == 0 else 0.65}
    results = runner.redact(texts, **options)
    for text, result in zip(texts, results, strict=True):
        check_report(text, result)
        marks = [found.span() for found in _MARK.finditer(text)]
        edges = {edge for found in regex.finditer(r"\X", text) for edge in found.span()} | {*chain(*marks)}
        gone = bytearray(len(text))
        for item in result.items:
            source, new = text[item.source_start : item.source_end], result.text[item.start : item.end]
            assert {item.source_start, item.source_end} <= edges and source == source.strip()
            assert len(new) == len(source) if item.operator == "mask" else item.operator == "keep" or new != source
            gone[item.source_start : item.source_end] = b"\1" * len(source)
        for start, end in marks:
            gone[start:end] = b"\1" * (end - start)
        if which == 0:  # the beginnings of words, and digits wherever they are
            assert all(gone[found.start()] for found in re.finditer(r"(?<![^\W_])[JSQ]|[123]", text))
    for text, result in zip(texts, results, strict=True):
        (alone,) = runner.redact([text], **options)
        assert alone.text == result.text or "surrogate" in str(spec)
        assert [(i.source_start, i.source_end, i.label) for i in alone.items] == [
            (i.source_start, i.source_end, i.label) for i in result.items
        ]


def _letters_in(text: str, start: int, end: int) -> list[int]:
    return [place for place in range(start, end) if text[place].isalnum()]


@pytest.mark.parametrize("family", taggers.FAMILIES)
def test_no_labelled_letter_stays_in_any_family_of_tokenizers(
    registry: ModelRegistry, tmp_path: Path, family: str
) -> None:
    """Whatever the tokenizer calls a word: also a whole text, or a sign with what stands behind it."""
    text = "Dr. Smith saw John Smith and Mary Jones on 03/2019 for fever, asthma, diabetes and COPD."
    read = taggers.tokenizer(family)
    by_id: dict[int, int] = {}
    for found in re.finditer("Smith|John|Mary|Jones|03/2019", text):
        encoding = read(text, return_offsets_mapping=True)
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if max(start, found.start()) < min(end, found.end()):
                by_id[token] = LABELS.index("B-DATE" if "0" in found[0] else "I-NAME")
    folder = taggers.write(tmp_path / "m", read, LABELS, by_id)
    lowercase: dict[str, Any] = {"do_lower_case": family.endswith("uncased")} if family.startswith("wordpiece") else {}
    registry.register("m", "clinical", model_path=str(folder), task="deid", label_scheme="BIO", **lowercase)
    runner = ModelRunner("m", registry=registry)
    result = redact(runner, text)
    assert not re.search("mith|John|Mary|Jones|03|2019", result) and result.endswith("COPD.")
    others = ["Dr.Smith (Smith) Name:Smith,Jones", "/John Smith/ 03/2019;fever", "José\nSmith\tJohn"]
    with registry.lease("m") as lease:
        tagged = [*label_words(lease, others)]
    for other, said, redaction in zip(others, tagged, runner.redact(others), strict=True):
        check_report(other, redaction)
        gone = {place for item in redaction.items for place in range(item.source_start, item.source_end)}
        for (start, end), number in zip(said.places, said.classes, strict=True):
            assert number == 0 or gone.issuperset(_letters_in(other, start, end))


@pytest.mark.parametrize("separator", spread([" ", " ___ ", "\n"], 3))
def test_a_trained_deidentifier_leaves_nothing(registry: ModelRegistry, trained: Path, separator: str) -> None:
    """In a note of 1,200 tokens without a sentence end, also with the marks of another de-identifier."""
    registry.register("d", "clinical", model_path=str(trained / "deid"), task="deid")
    note = join_notes(make_notes(45, "test", seed=2), separator)
    note = type(note)(note.text.replace(". ", ", "), note.entities)
    (result,) = ModelRunner("d", registry=registry).redact([note.text])
    check_report(note.text, result)
    assert result.coverage.tokens > 1_000 and result.coverage.windows > 1
    gone = [(item.source_start, item.source_end) for item in result.items]
    sources = [(start, end) for start, end, label in note.entities if label in PHI]
    covered = {place for start, end in gone for place in range(start, end)}
    left = [(start, end) for start, end in sources if not covered.issuperset(_letters_in(note.text, start, end))]
    assert len(left) <= len(sources) // 50, left
    kept = len(note.text) - sum(end - start for start, end in gone)
    assert kept > 0.5 * len(note.text) and result.text.count("___") == note.text.count("___")


CANARY = "Sxzqcanary"


def test_no_text_leaves_by_another_way(
    registry: ModelRegistry,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in a log, an error with its causes, a receipt, an item, the vault or the output."""
    caplog.set_level(logging.DEBUG)
    facts: Any = {"task": "deid", "do_lower_case": False, "label_scheme": "BIO"}
    registry.register("m", "clinical", model_path=str(folder), **facts)
    registry.register("cut", "clinical", model_path=str(folder), long_input="truncate", **facts)
    runner, vault = ModelRunner("m", registry=registry), tmp_path / "vault"
    spec = {"DEFAULT": {"type": "surrogate", "vault": str(vault), "key": KEY}, "DATE": {"type": "shift_dates"}}
    result = runner.redact([f"{CANARY} on 3"], operators=spec, documents=[CANARY], with_receipt=True)
    seen = [result[0].text, repr(result), repr(result[0].items), json.dumps(result.to_dict()), vault.read_text()]
    seen += [repr(result.receipt), result.to_pandas().to_csv()]
    (tmp_path / "vault").write_text("[]")
    fails: list[Callable[[], object]] = [
        lambda: runner.redact([CANARY], operators=spec),
        lambda: ModelRunner("cut", registry=registry).redact([f"{CANARY} " * 100]),
        lambda: runner.redact([CANARY, "b"], documents=[CANARY]),
        lambda: runner.redact([CANARY, "\udcff"]),
        lambda: runner.redact([(CANARY, CANARY)]),  # type: ignore[list-item]
        lambda: runner.redact(CANARY),
    ]
    for fail in fails:
        with pytest.raises(RequestError) as caught:
            fail()
        error: BaseException | None = caught.value
        while error is not None:
            seen += [str(error), repr(vars(error)), *traceback.format_exception_only(error)]
            error = error.__cause__ or error.__context__
    seen += [caplog.text, *capfd.readouterr(), *os.environ.values()]
    assert not [text for text in seen if CANARY in text or CANARY.casefold() in text.casefold()]
