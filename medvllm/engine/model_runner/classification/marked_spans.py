"""Spans that a caller has, and the window of a note around each, with the span marked as the model expects it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inputs import Text
from medvllm.engine.model_runner.reading.alignment import align_pieces
from medvllm.engine.model_runner.reading.commands import check_no_stand_ins, find_commands, has_special_token
from medvllm.engine.model_runner.reading.python_tokenizer import PythonTokenizer
from medvllm.engine.model_runner.reading.windows import Window, too_long_error
from medvllm.engine.model_runner.tagging.spans import Span
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease

_CHARACTERS = 24  # of context that are read for each token of a window; words of notes have far fewer


SpanLike = Span | Mapping[str, Any] | tuple[int, int] | list[int]


@dataclass(frozen=True)
class Place:
    """Where a span is: the positions of its text and of itself in the request, and its offsets."""

    text: int
    number: int
    start: int
    end: int


def parse_spans(spans: Any) -> list[list[Place]]:
    """Return the places of the spans of each text.

    Raises:
        RequestError: They are not a list of spans for each text, or a span has no offsets that make sense.
    """
    if not isinstance(spans, (list, tuple)):
        what = "are missing" if spans is None else f"must be a list, not {type(spans).__name__}"
        raise RequestError(
            f"The spans {what}.\nPass a list of spans for each text, such as: spans=[[(15, 20)]]", option="spans"
        )
    places = []
    for text, listed in enumerate(spans):
        if not isinstance(listed, (list, tuple)):
            raise RequestError(
                f"The spans of text {text + 1} must be a list, not {type(listed).__name__}.\n"
                "Pass a list of spans for each text, such as: spans=[[(15, 20)]]",
                option="spans",
                position=text,
            )
        places.append([_parse_span(span, text, number) for number, span in enumerate(listed)])
    return places


def check_places(texts: Sequence[str], places: Sequence[Sequence[Place]]) -> None:
    """Raise RequestError unless there is a list of spans for each text, and each span marks characters of its text."""
    if len(texts) != len(places):
        raise RequestError(
            f"There are {len(texts)} texts, but spans for {len(places)}.\nPass a list of spans for each text: []",
            option="spans",
        )
    for place in (place for listed in places for place in listed):
        text = texts[place.text]
        if place.end > len(text):
            raise _span_error(place, f"ends at {place.end}, but the text has {len(text)} characters")
        if not text[place.start : place.end].strip():
            raise _span_error(place, "covers white space only")


def check_marked(lease: Lease, texts: Sequence[Text], *, allow_special_tokens: bool) -> None:
    """Raise RequestError for a text without a marked span. The entry says that the model judges marked spans."""
    before, after = (marker.strip() for marker in lease.metadata.behaviour.entity_markers)
    # A marker that is a special token marks nothing if it is read as text.
    is_read = allow_special_tokens or not has_special_token(lease.tokenizer, before + after)
    for position, text in enumerate(texts, 1):
        sides = (text,) if isinstance(text, str) else text
        if not (is_read and any(after in side.partition(before)[2] for side in sides)):
            raise RequestError(
                f"Text {position} has no marked span, and model {lease.metadata.name!r} judges nothing else: a span "
                f"stands between {before!r} and {after!r}.\n"
                "Let the span be marked with: runner.assertions(texts, spans)",
                model=lease.metadata.name,
                position=position - 1,
            )


def read_around(
    lease: Lease, text: str, place: Place, *, may_cut: bool, allow_special_tokens: bool
) -> tuple[Window, Coverage]:
    """Return the marked span with as much of its text on both sides as the model takes, and what was read of the text.

    Args:
        lease: The model, whose entry states the markers.
        text: The text of the span.
        place: The span.
        may_cut: Whether the text may be cut around the span if it is too long.
        allow_special_tokens: Whether special tokens in the text are special tokens. Those in the markers always are.

    Raises:
        InputTooLongError: The text is too long and must not be cut, or the span is too long.
        RequestError: The text contains a marker.
    """
    tokenizer = lease.tokenizer
    before, after = lease.metadata.behaviour.entity_markers
    width = tokenizer.model_max_length * _CHARACTERS if may_cut else len(text)
    low, high = _context(text, place, width)
    commands = None
    if has_special_token(tokenizer, before + after) and not allow_special_tokens:
        commands = find_commands(tokenizer)
        check_no_stand_ins([""] * place.text + [text])
        before, after = commands.write(before), commands.write(after)
    else:
        _check_no_markers(text[low:high], (before, after), place)
    marked = text[low : place.start] + before + text[place.start : place.end] + after + text[place.end : high]
    encoder: Any = commands.tokenizer if commands else tokenizer
    allowed = commands.allow_special_tokens if commands else allow_special_tokens
    begin, end = place.start - low, place.end - low + len(before + after)
    ids, counted, (start, stop) = _encode_around(encoder, marked, (begin, end), place, may_cut, allowed)
    # Positions before the span count from `low`, and positions after it come after the markers.
    read = start + low, stop + low - len(before + after)
    window = Window(place.text, ids, [1] * len(ids))
    if commands:
        window = commands.read([window])[0]
    unknown = sum(token == tokenizer.unk_token_id for token in window.input_ids)
    return window, Coverage((read,), counted, unknown, 1, read[1] < len(text))


def _encode_around(
    tokenizer: Any, text: str, span: tuple[int, int], place: Place, may_cut: bool, allow_special_tokens: bool
) -> tuple[list[int], int, tuple[int, int]]:
    """Return the token ids of a window around a marked span.

    Args:
        tokenizer: The tokenizer.
        text: The text, in which the span is marked.
        span: The offsets of the span with its markers.
        place: The span, for errors.
        may_cut: Whether the text may be cut.
        allow_special_tokens: Whether special tokens in the text are special tokens.

    Returns:
        The ids with the special tokens around them, the number of the others, and the offsets of what was read.
    """
    limit = tokenizer.model_max_length
    room = limit - tokenizer.num_special_tokens_to_add()
    with translate_tokenizer_errors(place.text):
        encode = _encode_fast if tokenizer.is_fast else _encode_in_python
        tokens, offsets, wrap = encode(tokenizer, text, place, room, allow_special_tokens)
    if offsets is None:  # they are not needed, as the text is short
        return wrap(0, tokens), tokens, (0, len(text))
    first, last = _choose_tokens(offsets, span, room)
    if first == last:
        raise InputTooLongError(
            f"Span {place.number + 1} of text {place.text + 1} does not fit into the {limit:,} tokens that the model "
            "takes.\nPass a part of it that does.",
            limit=limit,
            position=place.text,
        )
    if last - first < len(offsets) and not may_cut:
        raise too_long_error(place.text, limit)
    read = (
        min(offsets[first][0], span[0]) if first else 0,
        max(offsets[last - 1][1], span[1]) if last < len(offsets) else len(text),
    )
    return wrap(first, last), last - first, read


# The number of tokens in a text, their offsets, and what puts special tokens around those of a range.
_Encoding = tuple[int, Sequence[tuple[int, int]] | None, Callable[[int, int], list[int]]]


def _encode_fast(tokenizer: Any, text: str, place: Place, room: int, allow_special_tokens: bool) -> _Encoding:
    found = tokenizer(
        text, add_special_tokens=False, split_special_tokens=not allow_special_tokens, verbose=False
    ).encodings[0]

    def wrap(first: int, last: int) -> list[int]:
        found.truncate(last, direction="right")
        found.truncate(last - first, direction="left")
        processor = tokenizer.backend_tokenizer.post_processor
        return list((processor.process(found, None, True) if processor else found).ids)

    return len(found.ids), found.offsets, wrap


def _encode_in_python(tokenizer: Any, text: str, place: Place, room: int, allow_special_tokens: bool) -> _Encoding:
    """Return the same for a tokenizer that is written in Python. The offsets are found only if the text is too long."""
    reader = PythonTokenizer(tokenizer, allow_special_tokens=allow_special_tokens)
    whole, ids = reader.encode(text), reader.read(text)
    if len(ids) <= room:
        return len(ids), None, lambda first, last: whole.ids
    wrapped = reader.wrap(ids)
    found = align_pieces(tokenizer, text, text, ids, allow_special_tokens)
    if found is None or wrapped is None or wrapped.ids != whole.ids:
        raise InputTooLongError(
            f"Text {place.text + 1} is longer than the {room:,} tokens that the model takes, and its "
            f"{type(tokenizer).__name__} does not tell where they stand in the text, so it cannot be cut around a span."
            "\nPass the sentence of the span.",
            limit=room,
            position=place.text,
        )

    def wrap(first: int, last: int) -> list[int]:
        part = reader.wrap(ids[first:last])
        return part.ids if part else []

    return len(ids), [piece.place for piece in found], wrap


def _parse_span(span: Any, text: int, number: int) -> Place:
    """Return the place of an object with `start` and `end`, a record with these keys, or a pair."""
    place = Place(text, number, 0, 0)
    offsets: tuple[Any, Any]
    if isinstance(span, Mapping):
        offsets = span.get("start"), span.get("end")
    elif isinstance(span, (tuple, list)):
        if len(span) != 2:
            raise _span_error(place, f"has {len(span)} items, not a start and an end")
        offsets = span[0], span[1]
    else:
        offsets = getattr(span, "start", None), getattr(span, "end", None)
    # SupportsIndex: also the integers of NumPy, of which a table of spans consists.
    if any(isinstance(offset, bool) or not isinstance(offset, SupportsIndex) for offset in offsets):
        raise _span_error(place, "has no start and end that are whole numbers")
    start, end = map(index, offsets)
    if not 0 <= start < end:
        raise _span_error(place, f"must begin before it ends, but begins at {start} and ends at {end}")
    return Place(text, number, start, end)


def _span_error(place: Place, what: str) -> RequestError:
    return RequestError(
        f"Span {place.number + 1} of text {place.text + 1} {what}.\n"
        "Offsets count Unicode code points, and the end is after the last character: (start, end)",
        option="spans",
        position=place.text,
    )


def _check_no_markers(text: str, markers: Sequence[str], place: Place) -> None:
    """Raise RequestError if a note contains a marker, so that the model could judge another place than the span."""
    if any(marker.strip() in text for marker in markers if marker.strip()):
        raise RequestError(
            f"Text {place.text + 1} contains {markers[0].strip()!r} or {markers[1].strip()!r}, with which the model "
            "marks a span.\nRemove it from the text.",
            position=place.text,
        )


def _context(text: str, place: Place, characters: int) -> tuple[int, int]:
    """Return the part of a text that is tokenized: up to `characters` on each side of the span, cut at blanks."""
    low, high = place.start - characters, place.end + characters
    if low > 0:
        low = next((i for i in range(low, place.start) if text[i].isspace()), low)
    if high < len(text):
        high = next((i for i in range(high, place.end, -1) if text[i].isspace()), high)
    return max(low, 0), min(high, len(text))


def _choose_tokens(offsets: Sequence[tuple[int, int]], span: tuple[int, int], room: int) -> tuple[int, int]:
    """Return the range of tokens for a window: those of the marked span, and as many on each side as there is room.

    What one side does not need, the other gets. An empty range means that there is no room for the span.
    """
    inside = [i for i, (start, stop) in enumerate(offsets) if start < span[1] and stop > span[0]]
    if not inside or inside[-1] - inside[0] + 1 > room:
        return 0, 0
    first, last = inside[0], inside[-1] + 1
    spare = room - (last - first)
    behind = len(offsets) - last
    left = min(first, max(spare // 2, spare - behind))
    return first - left, last + min(behind, spare - left)
