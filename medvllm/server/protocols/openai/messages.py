"""The messages of a conversation as OpenAI's API writes them, and as the library does."""

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict

from medvllm.server.problem import Problem, ProblemError
from medvllm.server.texts import TolerantModel

# What a message may have besides, and a model cannot be given. Keys that are not known here are ignored.
_REFUSED = ("name", "tool_calls", "tool_call_id", "function_call", "audio", "images", "prefix", "refusal")


class Message(TolerantModel):
    """One message. Its content is a text, or a list of parts of type "text"."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


def to_conversation(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as the library takes them. The parts of a content become its lines.

    Raises:
        ProblemError: A message has more than a role and a text, such as an image or a call of a tool.
    """
    return [_convert(message, f"messages.{number}") for number, message in enumerate(messages)]


def _convert(message: Message, where: str) -> dict[str, str]:
    for key in _REFUSED:
        if (message.model_extra or {}).get(key) not in (None, "", [], {}, False):
            raise _refusal(f"{where}.{key}", "the model reads only the role and the content of a message")
    if message.role in ("tool", "function"):
        raise _refusal(f"{where}.role", "tools are not supported")
    content = message.content
    if content is None:
        raise _refusal(f"{where}.content", "it is missing")
    if isinstance(content, list):
        content = "\n".join(_read_part(part, f"{where}.content.{number}") for number, part in enumerate(content))
    # OpenAI's newer name of the role that chat templates know.
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _read_part(part: dict[str, Any], where: str) -> str:
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise _refusal(where, 'the model reads texts, so a part must be {"type": "text", "text": …}')
    return text


def _refusal(where: str, why: str) -> ProblemError:
    return ProblemError(Problem(400, "unsupported_message", f"{where}: {why}.", where))
