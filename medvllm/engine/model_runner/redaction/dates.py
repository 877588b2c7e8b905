"""Moves dates by a number of days, and writes them as they were written. Names of months and weekdays are English."""

from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import regex

DateOrder = Literal["mdy", "dmy", "ymd"]
DATE_ORDERS: tuple[str, ...] = get_args(DateOrder)

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LEAP_CYCLE = range(2000, 2004)  # a date without a year is read in each: one of them is a leap year

_MONTH = rf"(?P<month_name>{'|'.join((*_MONTHS, *(name[:3] for name in _MONTHS), 'Sept'))})\b\.?"
_WEEKDAY = rf"(?P<weekday>{'|'.join((*_WEEKDAYS, *(name[:3] for name in _WEEKDAYS)))})\b\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?P<ordinal>st|nd|rd|th)?(?![0-9])"
_YEAR = r"(?P<year>[0-9]{4}|'?[0-9]{2})(?![0-9]|:[0-9])"
# The forms of a date. Parts named first, second and third have the order that the caller states.
_FORMS = (
    r"(?P<year>[0-9]{4})(?P<sign>\s?[-/.]\s?)(?P<month>[0-9]{1,2})(?P=sign)(?P<day>[0-9]{1,2})",
    r"(?P<year>(?:19|20|21)[0-9]{2})(?P<month>[0-9]{2})(?P<day>[0-9]{2})",
    r"(?P<first>[0-9]{1,2})(?P<sign>\s?[-/.]\s?)(?P<second>[0-9]{1,2})(?P=sign)(?P<third>[0-9]{4}|'?[0-9]{2})",
    rf"(?P<year>[0-9]{{4}})[-\s]{_MONTH}[-\s]{_DAY}",
    rf"{_DAY}(?:\s+of\s+|[-\s/.]{{0,2}}){_MONTH}(?:[-,\s/.]{{1,2}}{_YEAR})?",
    rf"{_MONTH}[-\s/.]{{1,2}}{_DAY}(?:,?[-\s/.]{{1,2}}{_YEAR})",
    rf"{_MONTH}\s{_DAY}",
    r"(?P<first>[0-9]{1,2})(?P<sign>[-/])(?P<second>[0-9]{1,2})",
)
_DATE = rf"(?<![0-9])(?:(?:{_WEEKDAY},?\s+)?(?:{'|'.join(_FORMS)})(?![0-9])|{_WEEKDAY})"
# What may stand around dates: signs, the time of day, and words that join two dates.
_TIME = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:\s*[ap]\.?m\b\.?)?|[0-9]{1,2}\s*[ap]\.?m\b\.?"
_ZONE = r"(?:\s*(?:Z|UTC|GMT|[ECMP][SD]T)\b|\s*[+-][0-9]{2}:?[0-9]{2})?"
_BETWEEN = rf"(?:[\s,;:()~–—-]|T?(?:{_TIME}){_ZONE}|\b(?:to|through|until|and|or|at|on|from|the|between)\b)*"


def shift_dates(text: str, days: int, order: DateOrder | None = None) -> str | None:
    """Return `text` with each of its dates moved by a number of days, in the same format.

    A date is moved only if it can be read in one way. "03/14/2019" and "3 May 2019" can; "03/04/2019" cannot, unless
    `order` says what comes first; "May 2019" has no day; the names in "3 mai 2019" are not English. The time of day and
    the words between two dates stay.

    Args:
        text: One or more dates, and nothing else.
        days: How many days later; negative for earlier.
        order: What a date of numbers begins with: "mdy", "dmy" or "ymd".

    Returns:
        The text, or None if something in it cannot be read with certainty.
    """
    dates, between = _patterns()
    parts: list[str] = []
    end = 0
    for found in dates.finditer(text):
        moved = _move(found, days, order)
        if moved is None or not between.fullmatch(text, end, found.start()):
            return None
        parts += [text[end : found.start()], moved]
        end = found.end()
    return "".join([*parts, text[end:]]) if parts and between.fullmatch(text, end) else None


@cache
def _patterns() -> "tuple[regex.Pattern[str], regex.Pattern[str]]":
    import regex

    return regex.compile(_DATE, regex.IGNORECASE), regex.compile(_BETWEEN, regex.IGNORECASE)


def _move(found: "regex.Match[str]", days: int, order: DateOrder | None) -> str | None:
    """Return a date that was moved, or None if the ways to read it give different results."""
    if found["weekday"] and found["day"] is None and found["first"] is None:
        return _replace(found, {"weekday": _weekday(_number_of(found["weekday"], _WEEKDAYS) + days, found["weekday"])})
    if _may_be_tuesday(found):
        return None
    results = {_write(found, roles, before, days) for roles, before in _read(found, order)}
    return results.pop() if len(results) == 1 else None


def _may_be_tuesday(found: "regex.Match[str]") -> bool:
    """Return whether "mar" may be mardi, martes or martedì, as in "mar. 14/03".

    It is March if there is an English weekday or a year of four digits, or if it has a capital and no other sign stands
    before the year than before the day.
    """
    is_first = found["month_name"] and found.start("month_name") < found.start("day")
    if not is_first or found["month_name"].casefold() != "mar" or found["weekday"]:
        return False
    if found["year"] is None:
        return bool(found["month_name"].islower())
    between = (
        found.string[found.end("month_name") : found.start("day")],
        found.string[found.end("day") : found.start("year")],
    )
    return len(found["year"]) < 4 and (found["month_name"].islower() or between[0].strip(".") != between[1])


def _read(found: "regex.Match[str]", order: DateOrder | None) -> Iterator[tuple[dict[str, str], date]]:
    """Yield each way to read a date: which part is the year, the month and the day, and the date."""
    for roles in _roles(found, order):
        month = found[roles["month"]] if "month" in roles else found["month_name"]
        month = int(month) if month.isdigit() else _number_of(month, _MONTHS) + 1
        for year in _years(found[roles["year"]] if "year" in roles else None):
            try:
                read = date(year, month, int(found[roles["day"]]))
            except ValueError:
                continue
            if not found["weekday"] or "year" not in roles or read.weekday() == _number_of(found["weekday"], _WEEKDAYS):
                yield roles, read


def _roles(found: "regex.Match[str]", order: DateOrder | None) -> list[dict[str, str]]:
    """Return, for each order that is possible, which named part of a date is the year, the month and the day."""
    if found["first"] is None:
        return [{role: role for role in ("year", "month", "day") if found[role] is not None}]
    names = {"m": "month", "d": "day", "y": "year"}
    places = ("first", "second", "third") if found["third"] else ("first", "second")
    # A year of four digits comes last here: years that come first have a form of their own.
    possible = DATE_ORDERS if order is None else (order,)
    if found["third"] is None:
        possible = tuple(each for each in possible if each != "ymd")
    elif len(found["third"]) != 2 and order in (None, "ymd"):
        possible = ("mdy", "dmy")
    if order is None and not found["third"]:
        return []  # "3/14" may be a day or a month of a year
    return [dict(zip((names[letter] for letter in each), places, strict=False)) for each in possible]


def _years(text: str | None) -> list[int]:
    """Return the years that a text may mean: those of two centuries, or any year if there is no text."""
    if text is None:
        return [*_LEAP_CYCLE]
    digits = text.lstrip("'")
    return [int(digits)] if len(digits) == 4 else [1900 + int(digits), 2000 + int(digits)]


def _write(found: "regex.Match[str]", roles: dict[str, str], before: date, days: int) -> str | None:
    """Return a date, moved and written as it was; None if it leaves the calendar."""
    try:
        after = before + timedelta(days)
    except OverflowError:
        return None
    numbers = [found[roles[role]] for role in ("month", "day") if role in roles]
    is_padded = any(number.startswith("0") for number in numbers) or [len(n) for n in numbers] == [2, 2]
    new = {
        roles[role]: f"{getattr(after, role):0{2 if is_padded else 1}d}" for role in ("month", "day") if role in roles
    }
    if "year" in roles:
        old = found[roles["year"]]
        digits = old.lstrip("'")
        new[roles["year"]] = old[: len(old) - len(digits)] + f"{after.year:04d}"[-len(digits) :]
    if found["month_name"]:
        new["month_name"] = _named(_MONTHS[after.month - 1], found["month_name"])
    if found["weekday"]:
        new["weekday"] = _weekday(_number_of(found["weekday"], _WEEKDAYS) + days, found["weekday"])
    if found["ordinal"]:
        ordinal = "th" if after.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(after.day % 10, "th")
        new["ordinal"] = ordinal.upper() if found["ordinal"].isupper() else ordinal
    return _replace(found, new)


def _replace(found: "regex.Match[str]", new: dict[str, str]) -> str:
    """Return the text of a match with some of its named parts replaced."""
    parts: list[str] = []
    end = found.start()
    for name in sorted(new, key=found.start):
        parts += [found.string[end : found.start(name)], new[name]]
        end = found.end(name)
    return "".join([*parts, found.string[end : found.end()]])


def _number_of(name: str, names: tuple[str, ...]) -> int:
    return next(i for i, each in enumerate(names) if each.casefold().startswith(name.casefold()[:3]))


def _weekday(number: int, like: str) -> str:
    return _named(_WEEKDAYS[number % 7], like)


def _named(name: str, like: str) -> str:
    """Return a name in the length and the case of another one of its kind."""
    whole = like.casefold() in {each.casefold() for each in (*_MONTHS, *_WEEKDAYS)}
    chosen = name if whole else name[:3]
    return chosen.upper() if like.isupper() else chosen.lower() if like.islower() else chosen
