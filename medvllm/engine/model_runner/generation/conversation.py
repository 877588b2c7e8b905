"""A conversation that a caller passes: messages with a role and a content."""

import re
from collections.abc import Mapping
from typing import Any

from medvllm.engine.model_runner.inputs import check_text
from medvllm.errors import RequestError

Conversation = list[dict[str, str]]

_ROLE = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)  # a template may put it into a special token


def check_conversation(prompt: Any, position: int) -> Conversation:
    """Return a conversation as a list of messages.

    Args:
        prompt: What the caller passed.
        position: Its position, from 1, for the message of an error.

    Raises:
        RequestError: It is not a list of messages, each with a role and a content. No message repeats a content.
    """
    if not isinstance(prompt, (list, tuple)):
        raise RequestError(
            f"Prompt {position} must be a text or a list of messages, not {type(prompt).__name__}.\n"
            'Write a message as: {"role": "user", "content": text}'
        )
    if not prompt:
        raise RequestError(
            f'Conversation {position} has no messages.\nWrite it as: [{{"role": "user", "content": text}}]'
        )
    return [_check_message(message, position, number) for number, message in enumerate(prompt, 1)]


def _check_message(message: Any, position: int, number: int) -> dict[str, str]:
    where = f"message {number} of conversation {position}"
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise RequestError(
            f"{where.capitalize()} must have a role and a content, and nothing else.\n"
            'Write it as: {"role": "user", "content": text}'
        )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise RequestError(f"The role of {where} must be one word, such as user.")
    if not isinstance(content, str):
        raise RequestError(f"The content of {where} must be text, not {type(content).__name__}.")
    check_text(content, position)
    return {"role": str(role), "content": str(content)}
