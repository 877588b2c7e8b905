"""The prompts of a generation, as token ids: texts, and conversations in the model's own chat template."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.generation.chat import encode_conversation
from medvllm.engine.model_runner.generation.conversation import Conversation, check_conversation
from medvllm.engine.model_runner.inputs import check_single_texts, to_list
from medvllm.errors import RequestError
from medvllm.lazy import lazy
from medvllm.model_registry import Lease

_PROBE = "a"


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids.

    Attributes:
        position: Its position in the request.
        ids: The token ids, with special tokens.
        coverage: What the model reads of it. Of a conversation, the contents of its messages count as one text.
        is_conversation: Whether it was a conversation.
    """

    position: int
    ids: list[int]
    coverage: Coverage
    is_conversation: bool


def read_prompts(lease: Lease, prompts: Iterable[Any], *, allow_special_tokens: bool) -> list[Prompt]:
    """Return the prompts as token ids.

    Raises:
        RequestError: A prompt cannot be used, or the model has no chat template for a conversation.
    """
    given = check_prompts(prompts)
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    if texts:
        check_single_texts(lease, texts, "generate")
    reader = _Reader(lease, allow_special_tokens)
    return [
        reader.read_text(prompt, position) if isinstance(prompt, str) else reader.read_conversation(prompt, position)
        for position, prompt in enumerate(given)
    ]


def check_prompts(prompts: Iterable[Any]) -> list[str | Conversation]:
    """Return the prompts as a list. A list of messages is one conversation.

    Raises:
        RequestError: A prompt is neither a text nor a conversation. The message names its position.
    """
    given = to_list(prompts)
    if given and all(isinstance(item, Mapping) for item in given):
        given = [given]
    return [
        prompt if isinstance(prompt, str) else check_conversation(prompt, position)
        for position, prompt in enumerate(given, 1)
    ]


class _Reader:
    """Reads prompts with the tokenizer of a model."""

    def __init__(self, lease: Lease, allow_special_tokens: bool) -> None:
        self._lease, self._allow_special_tokens = lease, allow_special_tokens
        self._tokenizer = lease.tokenizer

    def read_text(self, text: str, position: int) -> Prompt:
        with translate_tokenizer_errors(position):
            encoding = self._tokenizer(
                text,
                return_special_tokens_mask=True,
                split_special_tokens=not self._allow_special_tokens,
                verbose=False,
            )
        ids, special = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
        if self._closing:
            ids, special = ids[: -self._closing], special[: -self._closing]
        if not ids:
            raise RequestError(
                f"Text {position + 1} has no tokens, and the tokenizer puts none before a text: there is nothing to "
                "continue.\nPass at least one word.",
                position=position,
            )
        tokens = sum(not mark for mark in special)
        read = ((0, len(text)),) if text else ()
        return Prompt(position, ids, Coverage(read, tokens, self._count_unknown(ids), 1, False), False)

    def read_conversation(self, conversation: Conversation, position: int) -> Prompt:
        encoded = encode_conversation(
            self._lease, conversation, position, allow_special_tokens=self._allow_special_tokens
        )
        special = set(self._tokenizer.all_special_ids)
        tokens = sum(token not in special for token in encoded.ids)
        coverage = Coverage(encoded.read, tokens, self._count_unknown(encoded.ids), 1, False)
        return Prompt(position, encoded.ids, coverage, True)

    def _count_unknown(self, ids: Sequence[int]) -> int:
        return ids.count(self._tokenizer.unk_token_id) if self._tokenizer.unk_token_id is not None else 0

    @lazy
    def _closing(self) -> int:
        """How many special tokens the tokenizer puts behind a text. A decoder would take them for the end of it."""
        if getattr(self._lease.model.config, "is_encoder_decoder", False):
            return 0
        special = self._tokenizer(_PROBE, return_special_tokens_mask=True, verbose=False)["special_tokens_mask"]
        return next((count for count, mark in enumerate(reversed(special)) if not mark), 0)
