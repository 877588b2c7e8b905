"""The pattern that splits a text into words, for models that were trained on words split beforehand."""

from medvllm.errors import RequestError

ADVICE = r"Register the model with a simpler one, such as: word_pattern='\\w+|[^\\w\\s]'"

# Texts for which a pattern that repeats a repetition takes longer than anybody waits.
_LONG_RUNS = ("a" * 2000 + "!", "1" * 2000 + "!", "a1-" * 700 + "!", "a " * 1000 + "!", "Aa" * 1000 + "!")
_CHECK_S = 1.0  # for one of them; a sound pattern takes a millisecond
_TEXT_S = 10.0  # for one text; a sound pattern takes about a second for the longest one


def check_word_pattern(model: str, pattern: str | None) -> None:
    """Raise RequestError unless an entry's word pattern is a sound regular expression that finds no empty words."""
    if pattern is None:
        return
    import regex

    flaw = None
    try:
        compiled = regex.compile(pattern)
        if compiled.match(""):
            flaw = "also matches the empty text"
        for text in () if flaw else _LONG_RUNS:
            for _ in compiled.finditer(text, timeout=_CHECK_S):
                pass
    except regex.error as error:
        flaw = f"is not a regular expression: {error}"
    except TimeoutError:
        flaw = "takes too long for long runs of letters or digits: it repeats a repetition, as (a+)+ does"
    if flaw:
        raise RequestError(f"The word_pattern of model {model!r} {flaw}.\n{ADVICE}", keyword="word_pattern")


def find_words(text: str, pattern: str, position: int) -> tuple[tuple[int, int], ...]:
    """Return the start and end of each word of a text.

    Args:
        text: The text.
        pattern: The entry's word pattern.
        position: The position of the text in the request, for the message.

    Raises:
        RequestError: The pattern takes too long for the text, or is not a regular expression.
    """
    import regex

    try:
        matches = regex.finditer(pattern, text, timeout=_TEXT_S)
        return tuple(match.span() for match in matches if match.end() > match.start())
    except TimeoutError:
        why = f"needs more than {_TEXT_S:.0f} seconds for text {position + 1}"
    except regex.error as error:
        why = f"is not a regular expression: {error}"
    raise RequestError(f"The entry's word_pattern {why}.\n{ADVICE}", position=position)
