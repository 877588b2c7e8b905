"""Prints the error of a command, and chooses the exit code."""

import errno
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from typer.exceptions import Abort, TyperException

from medvllm.cli.streams import say
from medvllm.errors import MedVLLMError, ModelNameError, RequestError

USAGE = 2  # the command is wrong on any machine
_MAX_CHARACTERS = 100  # a longer argument may be a note in the wrong place
# Commands of similar tools -> ours.
_OTHER_TOOLS = {
    "search": "list",
    "find": "list",
    "info": "show",
    "inspect": "show",
    "describe": "show",
    "download": "pull",
    "add": "register",
    "create": "register",
    "rm": "unregister",
    "remove": "unregister",
    "delete": "unregister",
    "approve": "lock",
    "check": "doctor",
    "log": "history",
}
# How the library that reads the arguments says it -> how we do.
_PLAINER = {
    "Input should be greater than or equal to": "must be at least",
    "Input should be a valid integer, unable to parse string as an integer": "must be a whole number",
}
_MAX_WORDS = 2  # an argument of more words may be a note, too


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error as a line for the user and return the exit code of the command."""
    if isinstance(error, TyperException):
        _say_usage(error, arguments)
        return error.exit_code
    if isinstance(error, Abort):
        return 1
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return 1  # the reader of the pipe has closed it
    if isinstance(error, MedVLLMError):
        say(f"Error: {without_notes(str(error), arguments)}")
        return USAGE if isinstance(error, RequestError | ModelNameError) else 1
    if isinstance(error, OSError):
        file = "" if error.filename is None else f"{os.fsdecode(error.filename)!r} cannot be used: "
        say(f"Error: {without_notes(f'{file}{error.strerror or error}', arguments)}.")
        is_typed = isinstance(error, FileNotFoundError) and str(error.filename) in arguments
        return USAGE if is_typed else 1
    # Do not print the message: it may contain the text of a note.
    where = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(where[-1].filename).name}, line {where[-1].lineno}" if where else ""
    say(f"Error: {type(error).__name__}{place}.\nFor the traceback, run it again with: MEDVLLM_DEBUG=1")
    return 1


def say_traceback(error: BaseException, arguments: Sequence[str]) -> None:
    """Print where an error and its causes were raised.

    Of errors of other libraries, only the type is printed: their messages may contain the text of a note. So may local
    variables.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    for each in reversed(chain):
        shown = f": {without_notes(str(each), arguments)}" if isinstance(each, MedVLLMError | ImportError) else ""
        frames = "".join(traceback.format_tb(each.__traceback__))
        say(f"Traceback (most recent call last):\n{frames}{type(each).__name__}{shown}\n")


def without_notes(message: str, arguments: Sequence[str]) -> str:
    """Return a message without arguments that may be notes: those of more than two words, and long ones.

    Messages shorten what they show, so the beginning of such an argument is removed as well.
    """
    for argument in arguments:
        for text in (argument, argument.partition("=")[2]):
            if _may_be_a_note(text):
                message = _without(_without(message, text), repr(text)[1:-1])
    return message


def _may_be_a_note(text: str) -> bool:
    if len(text.split()) <= _MAX_WORDS and len(text) <= _MAX_CHARACTERS:
        return False
    return not (text.startswith(("/", "./", "../", "~/", "file://")) or os.path.lexists(text[:4096]))


def _without(message: str, text: str) -> str:
    """Return a message in which the text, or its beginning, is replaced by its length."""
    shown, start = f"… ({len(text)} characters)", message.find(text[:12])
    while start >= 0:
        end = start + _shared(message[start:], text)
        message = f"{message[:start]}{shown}{message[end:].removeprefix('…')}"
        start = message.find(text[:12], start + len(shown))
    return message


def _shared(first: str, second: str) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _say_usage(error: TyperException, arguments: Sequence[str]) -> None:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help text
        say(message)
        return
    option = getattr(error, "option_name", None)
    if option is not None and " " in option:
        message = "A text that begins with '-' looks like an option. Write -- before it: medvllm run NAME -- '- TEXT'"
    elif near := getattr(error, "possibilities", None):
        message = f"{getattr(error, 'message', message)}. Did you mean {', '.join(map(repr, near))}?"
    for theirs, ours in _PLAINER.items():
        message = message.replace(theirs, ours)
    is_first = context is not None and context.parent is None
    if is_first and message.startswith("No such command") and "Did you mean" not in message:
        known = _OTHER_TOOLS.get(next((word for word in arguments if not word.startswith("-")), ""))
        message += "" if known is None else f" Did you mean '{known}'?"
    if context is not None:
        say(context.get_usage())
    say(f"Error: {without_notes(message, arguments)}")
    if context is not None:
        say(f"See: {context.command_path} --help")
