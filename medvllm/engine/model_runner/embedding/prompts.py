"""Chooses the prompt that goes before each text, and counts its tokens."""

from typing import TYPE_CHECKING

from medvllm.engine.model_runner.inputs import check_texts
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choose_prompt(lease: Lease, name: str | None, prompt: str | None) -> str:
    """Return the prompt to use, or "" for none.

    The order is: the caller's `prompt`; the model's prompt called `name`; the prompt of the entry's role; the model's
    default prompt. As in sentence-transformers, a role without a prompt uses none, even if there is a default prompt.

    Raises:
        RequestError: The model has no prompt of that name, or both arguments are given.
    """
    if name is not None and prompt is not None:
        raise RequestError("Both 'prompt' and 'prompt_name' are given.\nPass only one of them.", option="prompt")
    if prompt is not None:
        return _check_prompt(prompt)
    behaviour = lease.metadata.behaviour
    known = dict(behaviour.prompts or {})
    if known or lease.modules.is_declared:
        known = {"query": "", "document": ""} | known
    default = behaviour.default_prompt_name
    if default is not None and default not in known:
        raise RequestError(
            f"The default prompt of model {lease.metadata.name!r} is {default[:80]!r}, but it has "
            f"{_list_prompts(known)}.\nRegister it with the text of that prompt: prompts={{{default[:80]!r}: '…'}}",
            model=lease.metadata.name,
        )
    if name is None:
        return known.get(behaviour.role or default or "", "")
    if not isinstance(name, str) or name not in known:
        near = did_you_mean(near_names(name, known)) if isinstance(name, str) else ""
        raise RequestError(
            f"Model {lease.metadata.name!r} has no prompt {repr(name)[:80]}.{near}\nIt has {_list_prompts(known)}.",
            model=lease.metadata.name,
            option="prompt_name",
        )
    return known[name]


def count_prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> int:
    """Return how many tokens at the beginning of a text belong to its prompt, special tokens included."""
    if not prompt:
        return 0
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    if len(ids) > tokenizer.model_max_length:
        raise InputTooLongError(
            f"The prompt has {len(ids):,} tokens; the model takes {tokenizer.model_max_length:,}.",
            limit=tokenizer.model_max_length,
        )
    # The special token at the end belongs to the end of a text, not to its prompt.
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _check_prompt(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise RequestError(f"The prompt must be text, not {type(prompt).__name__}.", option="prompt")
    try:
        check_texts([prompt])
    except RequestError as error:
        raise RequestError(
            "The prompt is not valid Unicode: it was decoded with the wrong encoding.", option="prompt"
        ) from error
    return prompt


def _list_prompts(known: dict[str, str]) -> str:
    return f"the prompts {', '.join(map(repr, sorted(known)))}" if known else "no prompts"
