"""Which prompt is put in front of texts, and how many tokens it takes."""

from typing import TYPE_CHECKING

from medvllm.engine.model_runner.inputs import check_texts
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choose(lease: Lease, name: str | None, prompt: str | None) -> str:
    """Return the prompt that a caller states or names; else the one of the entry's role, or the default one, or "".

    As in sentence-transformers, a role whose prompt is not declared has an empty one, whatever the default is.
    """
    if name is not None and prompt is not None:
        raise RequestError("Both 'prompt' and 'prompt_name' are given.\nLeave one of them out.", option="prompt")
    if prompt is not None:
        return _checked(prompt)
    behaviour = lease.metadata.behaviour
    known = dict(behaviour.prompts or {})
    if known or lease.modules.is_declared:
        known = {"query": "", "document": ""} | known
    default = behaviour.default_prompt_name
    if default is not None and default not in known:
        raise RequestError(
            f"The default prompt of model {lease.metadata.name!r} is {default[:80]!r}, and it has {_listed(known)}.\n"
            f"Register it with the text of that prompt too: prompts={{{default[:80]!r}: '…'}}",
            model=lease.metadata.name,
        )
    if name is None:
        return known.get(behaviour.role or default or "", "")
    if not isinstance(name, str) or name not in known:
        near = did_you_mean(near_names(name, known)) if isinstance(name, str) else ""
        shown = repr(name)[:80]
        raise RequestError(
            f"Model {lease.metadata.name!r} has no prompt {shown}.{near}\nIt has {_listed(known)}.",
            model=lease.metadata.name,
            option="prompt_name",
        )
    return known[name]


def token_count(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> int:
    """Return how many tokens at the beginning of a text are its prompt's, special ones included."""
    if not prompt:
        return 0
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    if len(ids) > tokenizer.model_max_length:
        raise InputTooLongError(
            f"The prompt has {len(ids):,} tokens; the model takes {tokenizer.model_max_length:,}.",
            limit=tokenizer.model_max_length,
        )
    # What ends a text does not end a prompt.
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _checked(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise RequestError(f"The prompt must be text, not {type(prompt).__name__}.", option="prompt")
    try:
        check_texts([prompt])
    except RequestError as error:
        raise RequestError("The prompt is not Unicode: bytes of another encoding were read into it.") from error
    return prompt


def _listed(known: dict[str, str]) -> str:
    return f"the prompts {', '.join(map(repr, sorted(known)))}" if known else "no prompts"
