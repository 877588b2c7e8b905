"""The operators of a redaction: what is written instead of a text with a label."""

import hmac
import logging
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from medvllm.engine.model_runner.option_checks import check_choice
from medvllm.engine.model_runner.redaction.dates import DATE_ORDERS, DateOrder, shift_dates
from medvllm.engine.model_runner.redaction.keys import SHORTEST_KEY, derive, derive_number, read_key
from medvllm.engine.model_runner.redaction.surrogates import Surrogates, check_locale, name_words, text_words
from medvllm.engine.model_runner.redaction.vault import Vaults
from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names
from medvllm.settings import REDACTION_KEY_FILE

_LOG = logging.getLogger(__name__)

DEFAULT = "DEFAULT"
_MOST_DAYS = 365  # the farthest that a date is moved by a derived number of days
_MOST_DOCUMENTS = 100_000  # whose surrogates are remembered from one chunk of a corpus to the next
_SHORTEST_HASH, _LONGEST_HASH = 8, 64
_EXAMPLE = "Write them as: operators={'DEFAULT': {'type': 'replace'}}"


Texts = Mapping[str, Sequence[str]]  # of each document
NO_TEXTS: Texts = MappingProxyType({})


@dataclass(frozen=True)
class Found:
    """A text to be written over: its characters, its label, and the document that it stands in."""

    source: str
    label: str
    document: str


class Operator:
    """What is written instead of the texts with one label.

    Attributes:
        type: The word for it in `operators`.
        doubt: Why `write` returns None.
    """

    type: ClassVar[str]
    doubt: ClassVar[str] = ""

    @property
    def has_drawn_key(self) -> bool:
        """Whether what is written depends on a key that was drawn, because the caller gave none."""
        return False

    def write(self, found: Found) -> str | None:
        """Return the new text, or None if there is none that is certainly right."""
        raise NotImplementedError

    def prepare(self, everything: Sequence[Found], vaults: Vaults, texts: Texts = NO_TEXTS) -> None:
        """Make ready for what is found in a call, and for the texts of its documents."""

    def share(self, key: bytes) -> None:
        """Use a key that was drawn for all operators of a call, if the caller gave none."""


@dataclass
class Replace(Operator):
    """Writes the label in brackets, or a text of the caller's."""

    type = "replace"
    new_value: str | None = None

    def __post_init__(self) -> None:
        _check(self.new_value is None or isinstance(self.new_value, str), "new_value", "a text", self.new_value)

    def write(self, found: Found) -> str:
        return f"[{found.label}]" if self.new_value is None else self.new_value


@dataclass
class Mask(Operator):
    """Writes one character again and again, in the same length. Line breaks stay."""

    type = "mask"
    masking_char: str = "*"

    def __post_init__(self) -> None:
        good = isinstance(self.masking_char, str) and len(self.masking_char) == 1 and self.masking_char.isprintable()
        _check(
            good and not self.masking_char.isspace() and not unicodedata.combining(self.masking_char),
            "masking_char",
            "one visible character",
            self.masking_char,
        )

    def write(self, found: Found) -> str:
        return "".join(letter if letter in "\r\n" else self.masking_char for letter in found.source)


@dataclass
class Remove(Operator):
    """Writes nothing."""

    type = "redact"

    def write(self, found: Found) -> str:
        return ""


@dataclass
class Keep(Operator):
    """Leaves the text as it is."""

    type = "keep"

    def write(self, found: Found) -> str:
        return found.source


@dataclass
class Hash(Operator):
    """Writes the HMAC-SHA-256 of the text in hexadecimal digits: equal texts have equal hashes."""

    type = "hash"
    key: "str | bytes | None" = field(default=None, repr=False)
    length: int = 16

    def __post_init__(self) -> None:
        good = type(self.length) is int and _SHORTEST_HASH <= self.length <= _LONGEST_HASH
        _check(good, "length", f"a whole number from {_SHORTEST_HASH} to {_LONGEST_HASH}", self.length)
        self._key = _need_key("hash", self.key)

    def write(self, found: Found) -> str:
        content = unicodedata.normalize("NFC", found.source).encode()
        return hmac.new(self._key, content, sha256).hexdigest()[: self.length]


@dataclass
class Surrogate(Operator):
    """Writes an invented text of the same kind: the same one for equal texts of a scope."""

    type = "surrogate"
    doubt = "no surrogate for this text"
    seed: "str | int | None" = field(default=None, repr=False)
    key: "str | bytes | None" = field(default=None, repr=False)
    scope: str | None = None
    vault: "str | Path | None" = None
    locale: str = "en_US"

    def __post_init__(self) -> None:
        seeds = self.seed is None or isinstance(self.seed, str) or type(self.seed) is int
        _check(seeds, "seed", "a text or a whole number", None if isinstance(self.seed, str) else self.seed)
        if self.scope is not None:
            check_choice("scope", self.scope, ("document", "call"))
        _check(self.vault is None or isinstance(self.vault, (str, Path)), "vault", "a path", self.vault)
        _check(isinstance(self.locale, str), "locale", "a text such as de_DE", self.locale)
        if self.vault is not None and self.scope is not None:
            raise RequestError(
                "Operator 'surrogate' has a scope and a vault, but a vault is a scope of its own.\n"
                "Leave one of them out: scope=, vault=",
                option="scope",
            )
        check_locale(self.locale)
        given = _need_key("surrogate", self.key) if self.vault is not None else _find_key(self.key)
        self._is_drawn = given is None and self.seed is None
        self._secret = derive(given or b"", "surrogate", str(self.seed))
        if self._is_drawn:
            self.share(secrets.token_bytes(32))
        self._books: dict[str, Surrogates] = {}
        # Of the latest documents, for a document whose texts are in several chunks of a corpus.
        self._documents: dict[bytes, tuple[MutableMapping[str, str], set[str]]] = {}
        self._has_warned = False

    @property
    def has_drawn_key(self) -> bool:
        return self._is_drawn

    def share(self, key: bytes) -> None:
        if self._is_drawn:  # consistent within the call, and nobody can test a guess
            self._secret = derive(key, "surrogate", str(self.seed))

    def prepare(self, everything: Sequence[Found], vaults: Vaults, texts: Texts = NO_TEXTS) -> None:
        documents = {found.document: set[str]() for found in everything}
        for found in everything:
            documents[found.document] |= name_words(found.label, found.source)
        if self.vault is None and self.scope != "call":
            self._books = {}
            for document, words in documents.items():
                secret = derive(self._secret, "document", document)
                remembered, forbidden = self._documents.pop(secret, ({}, set()))
                self._documents[secret] = remembered, forbidden | words
                self._books[document] = self._book(secret, *self._documents[secret], texts.get(document, ()))
            while len(self._documents) > _MOST_DOCUMENTS:
                del self._documents[next(iter(self._documents))]
            return
        remembered = {} if self.vault is None else vaults.open(Path(self.vault), self._secret)
        names = set(chain.from_iterable(documents.values()))
        of_call = chain.from_iterable(texts.get(document, ()) for document in documents)
        self._books = dict.fromkeys(documents, self._book(self._secret, remembered, names, of_call))

    def _book(
        self, secret: bytes, remembered: MutableMapping[str, str], forbidden: set[str], texts: Iterable[str]
    ) -> Surrogates:
        used = text_words(" ".join(remembered.values()))
        if not self._has_warned and not used.isdisjoint(forbidden):
            self._has_warned = True
            _LOG.warning(
                "A name is equal to a surrogate that another name got before it was read. To rule this out, pass all "
                'texts in one call, or use: "scope": "call"'
            )
        present = set[str]().union(*map(text_words, texts))
        return Surrogates(secret, self.locale, remembered, forbidden, present)

    def write(self, found: Found) -> str | None:
        return self._books[found.document].make(found.label, found.source)


@dataclass
class ShiftDates(Operator):
    """Writes dates that are a number of days earlier or later: the same number for each date of a document."""

    type = "shift_dates"
    doubt = "no date that can be read in one way only"
    days: int | None = None
    key: "str | bytes | None" = field(default=None, repr=False)
    date_order: DateOrder | None = None

    def __post_init__(self) -> None:
        good = self.days is None or (type(self.days) is int and self.days != 0)
        _check(good, "days", "a whole number other than 0", self.days)
        if self.date_order is not None:
            check_choice("date_order", self.date_order, DATE_ORDERS)
        given = _find_key(self.key)
        self._is_drawn = given is None
        self._key = given or secrets.token_bytes(32)

    @property
    def has_drawn_key(self) -> bool:
        return self._is_drawn and self.days is None

    def share(self, key: bytes) -> None:
        if self._is_drawn:
            self._key = key

    def write(self, found: Found) -> str | None:
        days = self.days
        if days is None:
            number = derive_number(self._key, "shift_dates", found.document) % (2 * _MOST_DAYS)
            days = number - _MOST_DAYS if number < _MOST_DAYS else number - _MOST_DAYS + 1
        return shift_dates(found.source, days, self.date_order)


_OPERATORS: dict[str, type[Operator]] = {
    each.type: each for each in (Replace, Mask, Remove, Hash, Surrogate, ShiftDates, Keep)
}


@dataclass(frozen=True)
class Operators:
    """The operator of each label, and the one of all others."""

    by_label: dict[str, Operator]
    default: Operator

    def of(self, label: str) -> Operator:
        """Return the operator of a label."""
        return self.by_label.get(label, self.default)

    @property
    def need_all_texts(self) -> bool:
        """Whether a corpus must be redacted in one call: surrogates of scope "call" depend on all texts."""
        used = (*self.by_label.values(), self.default)
        return any(isinstance(each, Surrogate) and each.vault is None and each.scope == "call" for each in used)

    @property
    def draw_keys(self) -> bool:
        """Whether an operator uses a key that was drawn, and is another one in each process."""
        return any(each.has_drawn_key for each in (*self.by_label.values(), self.default))

    @property
    def use_key_of_settings(self) -> bool:
        """Whether what is written depends on the key that the settings name, if there is one."""
        used = (*self.by_label.values(), self.default)
        keyed = [each for each in used if isinstance(each, (Hash, Surrogate, ShiftDates)) and each.key is None]
        return any(not isinstance(each, ShiftDates) or each.days is None for each in keyed)

    @property
    def have_surrogates(self) -> bool:
        """Whether texts are invented."""
        return any(isinstance(each, Surrogate) for each in (*self.by_label.values(), self.default))

    @property
    def have_vault(self) -> bool:
        """Whether surrogates are remembered in a vault."""
        used = (*self.by_label.values(), self.default)
        return any(isinstance(each, Surrogate) and each.vault is not None for each in used)

    @property
    def need_whole_documents(self) -> bool:
        """Whether what is written for one text of a document depends on its other texts, and nothing remembers it."""
        used = (*self.by_label.values(), self.default)
        return any(isinstance(each, Surrogate) and each.vault is None for each in used)

    @property
    def use_documents(self) -> bool:
        """Whether what is written for a text depends on which document it stands in."""
        used = (*self.by_label.values(), self.default)
        shifts = any(isinstance(each, ShiftDates) and each.days is None for each in used)
        return shifts or self.need_whole_documents

    def new_values(self) -> list[str]:
        """Return the texts that operators put in place of others."""
        replacing = (each for each in (*self.by_label.values(), self.default) if isinstance(each, Replace))
        return [each.new_value for each in replacing if each.new_value]

    @contextmanager
    def prepared(self, everything: Sequence[Found], texts: Texts) -> Iterator[None]:
        """Hold what the operators need, for what is found in a call and for the texts of its documents."""
        each_once = {id(each): each for each in (*self.by_label.values(), self.default)}
        found_for: dict[int, list[Found]] = {key: [] for key in each_once}
        for found in everything:
            found_for[id(self.of(found.label))].append(found)
        with Vaults() as vaults:
            # In one order everywhere, so that two calls never wait for each other.
            for key, operator in sorted(each_once.items(), key=lambda item: str(getattr(item[1], "vault", ""))):
                operator.prepare(found_for[key], vaults, texts)
            yield


def parse_operators(operators: "Mapping[str, Mapping[str, Any]] | Operators | None") -> Operators:
    """Return the operators that a caller asks for. Labels without one are replaced.

    Args:
        operators: For a label, or for "DEFAULT", the "type" of its operator and its options; or operators that were
            parsed before, which keep the keys that they drew.

    Raises:
        RequestError: An operator or an option does not exist or cannot be used.
        SettingError: The key in the settings cannot be read.
        MissingDependencyError: Surrogates are asked for, and Faker is not installed.
    """
    if isinstance(operators, Operators):
        return operators
    if operators is None:
        operators = {}
    if not isinstance(operators, Mapping):
        raise RequestError(
            f"operators must map labels to operators, not be {type(operators).__name__}.\n{_EXAMPLE}",
            option="operators",
        )
    made: dict[str, Operator] = {}
    known: dict[str, Operator] = {}  # by what was given
    shared = secrets.token_bytes(32)
    for label, given in operators.items():
        if not isinstance(label, str) or not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            raise RequestError(f"The operator of label {label!r} has no type.\n{_EXAMPLE}", option="operators")
        check_label(label)
        # Labels with equal operators share one: no surrogate stands for two names, and dates keep their distance.
        wanted = repr(sorted(given.items(), key=repr))
        made[label] = known[wanted] if wanted in known else known.setdefault(wanted, _make(given))
        made[label].share(shared)
    default = made.pop(DEFAULT, None)
    return Operators(made, default or Replace())


def check_label(label: str) -> None:
    """Raise RequestError if a label is "DEFAULT", but for its case."""
    if label != DEFAULT and label.casefold() == DEFAULT.casefold():
        raise RequestError(f"operators has {label!r}. Did you mean: {DEFAULT!r}?\n{_EXAMPLE}", option="operators")


def check_options(operator: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise RequestError if an operator is given an option that it does not have.

    Args:
        operator: Its type.
        given: The names of its options.
        known: The names of those that it has.
    """
    if unknown := next((name for name in given if name not in known), None):
        near = near_names(str(unknown), known)
        raise RequestError(
            f"Operator {operator!r} takes no option {unknown!r}.{did_you_mean(near)}\n"
            f"Its options: {', '.join(known) or 'none'}",
            option=str(unknown),
            candidates=tuple(near),
        )


def _make(given: Mapping[str, Any]) -> Operator:
    word = given["type"]
    kind = _OPERATORS.get(word)
    if kind is None:
        near = near_names(word, _OPERATORS)
        raise RequestError(
            f"There is no operator {word!r}.{did_you_mean(near)}\nUse one of: {', '.join(_OPERATORS)}",
            option="operators",
            value=word,
            candidates=tuple(near),
        )
    options = {name: value for name, value in given.items() if name != "type"}
    check_options(word, options, [*getattr(kind, "__dataclass_fields__", ())])
    return kind(**options)


def _check(is_good: bool, option: str, expected: str, value: object) -> None:
    if not is_good:
        raise RequestError(f"{option} must be {expected}, not {value!r}.", option=option, value=value)


def _find_key(key: object) -> bytes | None:
    """Return the key of the caller, or that of the settings; None if there is neither. No message contains it."""
    if key is None:
        return read_key()
    content = key.encode() if isinstance(key, str) else key
    if not isinstance(content, bytes) or len(content) < SHORTEST_KEY:
        found = f"has {len(content)}" if isinstance(content, bytes) else f"is {type(key).__name__}"
        raise RequestError(
            f"key must be a text or bytes of at least {SHORTEST_KEY} bytes; it {found}.\n"
            "Make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
            option="key",
        )
    return content


def _need_key(operator: str, key: object) -> bytes:
    found = _find_key(key)
    if found is None:
        raise RequestError(
            f"Operator {operator!r} needs a key: without one, anybody could test a list of names.\n"
            "Make one: openssl rand -hex 32 > redaction.key; export "
            f"{REDACTION_KEY_FILE.name}=$PWD/redaction.key",
            option="key",
        )
    return found
