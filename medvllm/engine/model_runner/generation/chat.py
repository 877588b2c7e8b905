"""Conversations in the chat template of a model, as token ids."""

import re
from dataclasses import dataclass

from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.generation.bounded_templates import (
    MOST_CHARACTERS,
    TooLargeError,
    literal_text,
    render_bounded,
)
from medvllm.engine.model_runner.generation.conversation import Conversation
from medvllm.engine.model_runner.generation.step_limit import TooManyStepsError, limit_template_steps
from medvllm.errors import RequestError
from medvllm.lazy import lazy
from medvllm.model_registry import Lease

_STEPS = 1_000_000  # lines of code that a template may run; one message takes about twenty
_MARKS = re.compile("[\U000f0000\U000f0001]")  # transformers marks special tokens in a content with these
_HARMLESS = "\N{WHITE SQUARE}"


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids, and which characters of its contents, put one after another, the template kept."""

    ids: list[int]
    read: tuple[tuple[int, int], ...]


def encode_conversation(
    lease: Lease, conversation: Conversation, position: int, *, allow_special_tokens: bool
) -> EncodedConversation:
    """Return a conversation in the model's chat template, ready for the model's answer.

    The special tokens of the template are special tokens. Those in a content are text, unless `allow_special_tokens`.

    Raises:
        RequestError: The model has no chat template, or the template does not take this conversation, or it joins a
            content and its own text to a special token.
    """
    template = _Template(lease, position)
    rendered = template.render(conversation)
    if allow_special_tokens:
        ids = template.encode(conversation, sanitize=False)
    else:
        template.check_marks(conversation)
        ids = template.encode(conversation, sanitize=True)
        template.check_control_tokens(conversation, ids)
    return EncodedConversation(ids, _find_contents(conversation, rendered))


class _Template:
    """The chat template of a model, for one conversation."""

    def __init__(self, lease: Lease, position: int) -> None:
        self._tokenizer, self._name, self._position = lease.tokenizer, lease.metadata.name, position
        if not self._tokenizer.chat_template:
            raise RequestError(
                f"Model {self._name!r} has no chat template, so it takes texts, not conversations.\n"
                "Pass the prompt as one text, written as the model was trained: generate([text])",
                model=self._name,
                position=position,
            )
        with translate_tokenizer_errors(position):
            self._source = str(self._tokenizer.get_chat_template())

    def render(self, conversation: Conversation) -> str:
        """Return the conversation as the template writes it, ready for the answer."""
        with translate_tokenizer_errors(self._position):
            try:
                with limit_template_steps(_STEPS):
                    return render_bounded(
                        self._source,
                        messages=conversation,
                        tools=None,
                        documents=None,
                        add_generation_prompt=True,
                        **self._tokenizer.special_tokens_map,
                    )
            except TooManyStepsError:
                reason = f"runs more than {_STEPS:,} steps"
            except TooLargeError:
                reason = f"makes a text or a list of more than {MOST_CHARACTERS:,} characters, or too many of them"
            except Exception as error:
                reason = self._describe(error)
        # Raised here, so that the error has no cause: that of a template may contain a message.
        raise self._refusal(reason)

    def encode(self, conversation: Conversation, *, sanitize: bool) -> list[int]:
        """Return the conversation as token ids; with `sanitize`, control tokens in a content are read as text."""
        from transformers.utils.chat_template_utils import _get_control_token_patterns, mark_control_tokens

        if sanitize:
            pattern, _ = _get_control_token_patterns(tuple(self._marked_tokens))
            conversation = mark_control_tokens(conversation, pattern)
        rendered = self.render(conversation)
        with translate_tokenizer_errors(self._position):
            ids = list(
                self._tokenizer(rendered, add_special_tokens=False, sanitize_control_tokens=sanitize)["input_ids"]
            )
        if not ids:
            raise self._refusal("writes nothing for it")
        return ids

    def check_marks(self, conversation: Conversation) -> None:
        """Raise RequestError if a content has the signs with which transformers marks special tokens: it drops them."""
        for number, message in enumerate(conversation, 1):
            if found := _MARKS.search(message["content"]):
                raise RequestError(
                    f"Message {number} of conversation {self._position + 1} contains U+{ord(found[0]):X}, a private "
                    "character that chat templates cannot carry.\nRemove it, or pass: allow_special_tokens=True",
                    model=self._name,
                    position=self._position,
                )

    def check_control_tokens(self, conversation: Conversation, ids: list[int]) -> None:
        """Raise RequestError if a special token is in the ids that the template does not write itself.

        A template may change contents, or join them. Parts of a special token then become a whole one. So the
        conversation is encoded again without other signs than whole special tokens, which are marked: the special
        tokens must stay the same.
        """
        tokens = self._control_tokens
        whole = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")

        def harmless(content: str) -> str:
            kept = [match.group() for match in whole.finditer(content)]
            between = [re.sub(r"\S", _HARMLESS, text) for text in whole.split(content)]
            return "".join(text + token for text, token in zip(between, [*kept, ""], strict=True))

        other = [message | {"content": harmless(message["content"])} for message in conversation]
        control = {i for i, token in self._tokenizer.added_tokens_decoder.items() if token.content in tokens}
        expected = self.encode(other, sanitize=True)
        if [i for i in ids if i in control] != [i for i in expected if i in control]:
            raise RequestError(
                f"The chat template of model {self._name!r} makes a special token of a message in conversation "
                f"{self._position + 1}.\nTo permit special tokens in messages, pass: allow_special_tokens=True",
                model=self._name,
                position=self._position,
            )

    @property
    def _control_tokens(self) -> list[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special or token.content in self._source]

    @lazy
    def _marked_tokens(self) -> list[str]:
        """The tokens that transformers would mark in a content."""
        stated = self._tokenizer.chat_control_tokens
        text = literal_text(self._source) if stated is None else ""
        return [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.special
            or (
                token.content in stated if stated is not None else token.content in text and not token.content.isspace()
            )
        ]

    def _refusal(self, reason: str) -> RequestError:
        return RequestError(
            f"Conversation {self._position + 1} cannot be used: the chat template of {self._name!r} {reason}.",
            model=self._name,
            position=self._position,
        )

    def _describe(self, error: Exception) -> str:
        """Return what a template raised. Its message is only repeated if it is written in the template."""
        message = str(error).strip().rstrip(".")
        said = f": {message}" if message and message in self._source else ""
        return f"does not take it: {type(error).__name__}{said}"


def _find_contents(conversation: Conversation, rendered: str) -> tuple[tuple[int, int], ...]:
    """Return where the contents that are in the rendered text stand among all contents, put one after another."""
    read: list[tuple[int, int]] = []
    start = place = 0
    for message in conversation:
        content = message["content"]
        end = start + len(content)
        found = rendered.find(content.strip(), place)
        if content and found >= 0:
            place = found + len(content.strip())
            joins = bool(read) and read[-1][1] == start
            read[-1:] = [(read[-1][0], end)] if joins else [*read[-1:], (start, end)]
        start = end
    return tuple(read)
