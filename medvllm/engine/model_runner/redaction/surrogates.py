"""Surrogates: invented names, dates, places and numbers that stand for real ones."""

import threading
import unicodedata
from collections.abc import Callable, Collection, MutableMapping
from functools import cache
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.redaction.dates import DATE_ORDERS, shift_dates
from medvllm.engine.model_runner.redaction.keys import derive, derive_number
from medvllm.errors import MissingDependencyError, RequestError
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from faker import Faker

_TRIES = 100
_OLDEST = 89  # ages above are identifying under HIPAA's Safe Harbor
_MOST_DAYS = 1_000


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What a label stands for, by the words in it. The first kind that has one of the words counts: a PATIENT_ID is an id.
_KINDS = {
    "email": _set("email mail"),
    "url": _set("url web website"),
    "ip": _set("ip ipaddr ipaddress"),
    "phone": _set("phone fax telephone tel mobile pager"),
    "id": _set(
        "id idnum mrn medicalrecord record ssn account license licence healthplan insurance device serial vehicle "
        "plate bioid zip zipcode postcode number num card iban passport"
    ),
    "date": _set("date dob birthdate birthday datetime"),
    "age": _set("age"),
    "username": _set("username user"),
    "hospital": _set("hospital hosp clinic facility"),
    "organization": _set("organization organisation org patorg company vendor employer"),
    "street": _set("street address"),
    "state": _set("state province"),
    "country": _set("country nation"),
    "city": _set("city town loc location place gpe otherloc"),
    "profession": _set("profession job occupation"),
    "name": _set(
        "name person per patient doctor hcw staff physician nurse relative family clinician firstname lastname surname"
    ),
}
# The 's of a possessive, a word, or one other character.
_NAME_TOKEN = r"['’]s\b|[\p{L}\p{M}\p{N}]+(?:['’](?!s\b)[\p{L}\p{M}\p{N}]+)*|[^\p{L}\p{M}\p{N}]"
_TITLES = _set("dr mr mrs ms miss prof professor sr jr md phd rn mme mlle herr frau ii iii iv")
_PARTICLES = _set("van von der den de del della di da la le du al el bin ibn ter ten zu dos")
_AGE_WORDS = _set(
    "a age aged year years yr yrs y yo o old month months mo mos week weeks wk wks day days d m w of the and"
)
_HOSPITAL_WORDS = _set(
    "hospital clinic center centre medical infirmary klinik klinikum krankenhaus hôpital clinique hospice"
)


def name_words(label: str, source: str) -> set[str]:
    """Return the words of a name, in folded case, that no surrogate may contain; nothing for another kind of text."""
    if "@" in source or kind_of(label) != "name":
        return set()
    return {word for word in _letters(source) if len(word) > 2} - _TITLES - _PARTICLES


def kind_of(label: str) -> str | None:
    """Return what a label stands for: "name", "date", "id" and so on; None if the label does not tell."""
    words = _letters(label)
    words = [*words, "".join(words)]
    return next((kind for kind, known in _KINDS.items() if known.intersection(words)), None)


def check_locale(locale: str) -> None:
    """Raise RequestError if Faker has no such locale, MissingDependencyError if there is no Faker."""
    try:
        from faker.config import AVAILABLE_LOCALES
    except ImportError as error:
        raise MissingDependencyError(
            "Surrogates need Faker.\nInstall it with: pip install 'medvllm[surrogates]'", package="Faker"
        ) from error
    if locale not in AVAILABLE_LOCALES:
        raise RequestError(
            f"Faker has no locale {locale!r}.{did_you_mean(near_names(locale, AVAILABLE_LOCALES))}\n"
            "Its locales have the form: de_DE",
            option="locale",
            value=locale,
        )


def text_words(text: str) -> set[str]:
    """Return the words and numbers of a text that are long enough to tell something, in folded case."""
    import regex

    return {word.casefold() for word in regex.findall(r"[\p{L}\p{M}\p{N}]{3,}", text)}


class Surrogates:
    """The surrogates of one scope: equal sources get equal surrogates, different ones different surrogates.

    A surrogate depends on the secret and its source. It shares no word with what is redacted beside it, and is not in
    the texts of the scope.

    Args:
        secret: Who knows it can test which source a surrogate stands for.
        locale: The language and country of the surrogates, for example "en_US".
        remembered: The surrogates that exist, by the HMACs of their sources. New ones are added.
        forbidden: Words that no surrogate may contain, in folded case.
        present: The words of the texts, as `text_words` returns them. No surrogate may consist of them.
    """

    def __init__(
        self,
        secret: bytes,
        locale: str,
        remembered: MutableMapping[str, str],
        forbidden: Collection[str],
        present: Collection[str] = (),
    ) -> None:
        self._secret, self._locale, self._remembered = secret, locale, remembered
        self._forbidden, self._present = forbidden, present
        self._taken = {each.casefold() for each in remembered.values()}

    def make(self, label: str, source: str) -> str | None:
        """Return the surrogate for a text with a label, or None if nothing fits."""
        kind = "email" if "@" in source else kind_of(label)
        make = _MAKERS.get(kind or "")
        return make(self, source) if make else None

    def draw(self, kind: str, source: str, *ways: "Callable[[Faker], str]") -> str | None:
        """Return the surrogate of a source, invented in the first way that gives a new one; None if none does."""
        source = unicodedata.normalize("NFC", source).casefold()
        name = derive(self._secret, kind, source).hex()
        if name in self._remembered:
            return self._remembered[name]
        for make in ways:
            for attempt in range(_TRIES):
                found = make(_faker(self._locale, derive_number(self._secret, kind, source, str(attempt))))
                if not self._is_forbidden(found, source):
                    self._taken.add(found.casefold())
                    self._remembered[name] = found
                    return found
        return None

    def number(self, source: str, *parts: str) -> int:
        """Return a number that depends on the secret and on a text."""
        return derive_number(self._secret, source, *parts)

    def _is_forbidden(self, found: str, source: str) -> bool:
        folded = found.casefold()
        own = (word for word in _letters(source) if len(word) > 3)
        words = text_words(found)
        return (
            folded == source
            or folded in self._taken
            or any(word in folded for word in (*own, *self._forbidden))
            or (bool(words) and words.issubset(self._present))
        )

    # One method for each kind of text.

    def _name(self, source: str) -> str | None:
        import regex

        parts: list[str] = []
        for token in regex.findall(_NAME_TOKEN, source, regex.IGNORECASE):
            if token[0] in "'’":
                parts.append(token)
            elif not regex.search(r"[\p{L}\p{N}]", token):
                if not (token.isspace() and (not parts or parts[-1].isspace())):
                    parts.append(token)
            elif token.casefold() in _TITLES:
                parts.append(token)
            elif token not in _PARTICLES:
                new = self._name_word(token)
                if new is None:
                    return None
                parts.append(_in_case_of(token, new))
        made = "".join(parts).strip()
        return made if _letters(made) and made.casefold() != source.casefold() else None

    def _name_word(self, word: str) -> str | None:
        if len(word) == 1:
            letters = [letter for letter in "ABCDEFGHIJKLMNOPRSTVW" if letter.casefold() != word.casefold()]
            return letters[self.number(word.casefold(), "initial") % len(letters)]
        if word.isnumeric():
            return self._pattern(word)
        # There are about a thousand names. If they do not suffice, two of them make a new one.
        if word.casefold() in _first_names(self._locale):
            return self.draw(
                "first name",
                word,
                lambda fake: str(fake.first_name()),
                lambda fake: f"{fake.first_name()}-{fake.first_name()}",
            )
        return self.draw(
            "last name",
            word,
            lambda fake: str(fake.last_name()),
            lambda fake: f"{fake.last_name()}-{fake.last_name()}",
        )

    def _age(self, source: str) -> str | None:
        import regex

        numbers = regex.findall(r"[0-9]+", source)
        if len(numbers) != 1 or len(numbers[0]) > 3 or not _AGE_WORDS.issuperset(_letters(source)):
            return None
        age = int(numbers[0])
        distance = max(1, age // 10)
        near = [each for each in range(age - distance, age + distance + 1) if 0 <= each <= _OLDEST and each != age]
        near = near or [*range(_OLDEST - 9, _OLDEST + 1)]
        return source.replace(numbers[0], str(near[self.number(source, "age") % len(near)]))

    def _date(self, source: str) -> str | None:
        days = 1 + self.number("dates") % _MOST_DAYS
        moved = (shift_dates(source, sign * days, order) for sign in (-1, 1) for order in (None, *DATE_ORDERS))  # type: ignore[arg-type]
        return next((each for each in moved if each is not None and each != source), None)

    def _hospital(self, source: str) -> str | None:
        kept = [word for word in source.split() if word.casefold().strip(".,") in _HOSPITAL_WORDS]
        ending = " ".join(kept) or "Hospital"
        new = self.draw("hospital", source, lambda fake: str(fake.last_name()))
        return new and _in_case_of(source, f"{new} {ending}")

    def _pattern(self, source: str) -> str | None:
        def scramble(fake: "Faker") -> str:
            return "".join(map(fake_letter, [fake] * len(source), source))

        def fake_letter(fake: "Faker", letter: str) -> str:
            if letter.isnumeric():
                return str(fake.random_digit())
            if not letter.isalpha():
                return letter
            return str(fake.random_uppercase_letter() if letter.isupper() else fake.random_lowercase_letter())

        return self.draw("id", source, scramble)

    def _address(self, source: str, form: str) -> str | None:
        # Addresses under example.org belong to nobody.
        user = self.draw("address", source, lambda fake: str(fake.user_name()).replace("_", "."))
        return user and form.format(user)

    def _by_faker(self, source: str, *methods: str) -> str | None:
        def invent(fake: "Faker") -> str:
            # Faker's own providers stand in for what a locale lacks.
            method: Any = next(getattr(fake, method) for method in methods if hasattr(fake, method))
            return " ".join(str(method()).split())

        found = self.draw(methods[0], source, invent)
        return found and _in_case_of(source, found)


_MAKERS: dict[str, Callable[[Surrogates, str], str | None]] = {
    "name": Surrogates._name,
    "age": Surrogates._age,
    "date": Surrogates._date,
    "phone": Surrogates._pattern,
    "id": Surrogates._pattern,
    "hospital": Surrogates._hospital,
    "email": lambda self, source: self._address(source, "{}@example.org"),
    "url": lambda self, source: self._address(source, "https://{}.example.org"),
    "ip": lambda self, source: self._by_faker(source, "ipv4"),
    "username": lambda self, source: self._by_faker(source, "user_name"),
    "organization": lambda self, source: self._by_faker(source, "company"),
    "street": lambda self, source: self._by_faker(source, "street_address"),
    "city": lambda self, source: self._by_faker(source, "city"),
    "state": lambda self, source: self._by_faker(source, "state", "administrative_unit", "city"),
    "country": lambda self, source: self._by_faker(source, "country"),
    "profession": lambda self, source: self._by_faker(source, "job"),
}


def _letters(text: str) -> list[str]:
    """Return the words of a text that consist of letters, in folded case."""
    import regex

    return [word.casefold() for word in regex.findall(r"\p{L}+", text)]


def _in_case_of(source: str, text: str) -> str:
    """Return a text in capitals or small letters if its source is written so."""
    letters = [letter for letter in source if letter.isalpha()]
    if len(letters) > 1 and all(letter.isupper() for letter in letters):
        return text.upper()
    return text.lower() if letters and all(letter.islower() for letter in letters) else text


_fakers = threading.local()  # a Faker keeps the state of its seed


def _faker(locale: str, seed: int) -> "Faker":
    """Return this thread's Faker of a locale, seeded."""
    from faker import Faker

    known: dict[str, Faker] = _fakers.__dict__
    if locale not in known:
        known[locale] = Faker(locale)
    known[locale].seed_instance(seed)
    return known[locale]


@cache
def _first_names(locale: str) -> frozenset[str]:
    """Return the first names that Faker has for a locale, in folded case."""
    names: set[str] = set()
    for provider in _faker(locale, 0).get_providers():
        for field in ("first_names", "first_names_male", "first_names_female"):
            names.update(str(name).casefold() for name in getattr(provider, field, ()))
    return frozenset(names)
