"""What a command prints when it fails, and its exit code."""

import errno
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from typer.exceptions import Abort, TyperException

from medvllm.cli.streams import say
from medvllm.errors import MedVLLMError, ModelNameError, RequestError

USAGE = 2  # what was typed cannot be done, whatever the machine
_LONGEST = 100  # characters of an argument that a message may show
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
_WORDS = 2  # an argument of more words may be a note in the wrong place


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error as a line for the user and return the exit code of the command."""
    if isinstance(error, TyperException):
        _say_usage(error, arguments)
        return error.exit_code
    if isinstance(error, Abort):
        return 1
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return 1  # whoever read the output has seen enough
    if isinstance(error, MedVLLMError):
        say(f"Error: {without_notes(str(error), arguments)}")
        return USAGE if isinstance(error, RequestError | ModelNameError) else 1
    if isinstance(error, OSError):
        file = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
        say(f"Error: {without_notes(f'{file}{error.strerror or error}', arguments)}.")
        is_typed = isinstance(error, FileNotFoundError) and str(error.filename) in arguments
        return USAGE if is_typed else 1
    # Its message may hold any text, also that of a note.
    where = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(where[-1].filename).name}, line {where[-1].lineno}" if where else ""
    say(f"Error: {type(error).__name__}{place}.\nSee where it comes from: set MEDVLLM_DEBUG=1 and run it again.")
    return 1


def without_notes(message: str, arguments: Sequence[str]) -> str:
    """Return a message without arguments that may be the text of a note: an argument of several words, or a long one.

    The beginning of one is enough to be left out, as messages cut what they show.
    """
    for argument in arguments:
        for text in (argument, argument.partition("=")[2]):
            if _may_be_a_note(text):
                message = _without(_without(message, text), repr(text)[1:-1])
    return message


def _may_be_a_note(text: str) -> bool:
    if len(text.split()) <= _WORDS and len(text) <= _LONGEST:
        return False
    return not (text.startswith(("/", "./", "../", "~/", "file://")) or os.path.lexists(text[:4096]))


def _without(message: str, text: str) -> str:
    """Return a message with as much of a text as it holds replaced by the text's length."""
    shown, start = f"… ({len(text)} characters)", message.find(text[:12])
    while start >= 0:
        end = start + _shared(message[start:], text)
        message = f"{message[:start]}{shown}{message[end:].removeprefix('…')}"
        start = message.find(text[:12], start + len(shown))
    return message


def _shared(first: str, second: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _say_usage(error: TyperException, arguments: Sequence[str]) -> None:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        say(message)
        return
    option = getattr(error, "option_name", None)
    if option is not None and " " in option:
        message = "A text that begins with '-' reads as an option. Write -- before it: medvllm run NAME -- '- TEXT'"
    is_first = context is not None and context.parent is None
    if is_first and message.startswith("No such command") and "Did you mean" not in message:
        known = _OTHER_TOOLS.get(next((word for word in arguments if not word.startswith("-")), ""))
        message += "" if known is None else f" Did you mean '{known}'?"
    if context is not None:
        say(context.get_usage())
    say(f"Error: {without_notes(message, arguments)}")
    if context is not None:
        say(f"See: {context.command_path} --help")
