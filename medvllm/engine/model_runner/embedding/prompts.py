"""Chooses the prompt that goes before each text, and counts its tokens."""

from typing import TYPE_CHECKING, Literal, get_args

from medvllm.engine.model_runner.inputs import check_option_text
from medvllm.engine.model_runner.option_checks import check_choice
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Role = Literal["query", "document"]
ROLES: tuple[str, ...] = get_args(Role)


def check_prompt_options(name: object, prompt: object, role: object) -> None:
    """Raise RequestError if more than one of the options that choose a prompt is given."""
    if role is not None:
        check_choice("role", role, ROLES)
    given = {"prompt": prompt, "prompt_name": name, "role": role}
    both = [option for option, value in given.items() if value is not None]
    if len(both) > 1:
        raise RequestError(f"Both {both[0]!r} and {both[1]!r} are given.\nPass only one of them.", option=both[0])


def check_role(lease: Lease, role: Role | None) -> None:
    """Raise RequestError if the entry is for the other side of a search than the caller's role."""
    behaviour = lease.metadata.behaviour
    if role is None or behaviour.role in (None, role):
        return
    advice = (
        f"For the other side, use: ModelRunner({behaviour.counterpart!r})"
        if behaviour.counterpart
        else f"If it serves both sides, register it without role={behaviour.role!r}"
    )
    raise RequestError(
        f"Model {lease.metadata.name!r} makes vectors of the role {behaviour.role!r}, not {role!r}.\n{advice}",
        model=lease.metadata.name,
        option="role",
    )


def choose_prompt(lease: Lease, name: str | None, prompt: str | None, role: Role | None = None) -> str:
    """Return the prompt to use, or "" for none.

    The order is: the caller's `prompt`; the model's prompt called `name`; the prompt of the caller's `role`, or of the
    entry's; the model's default prompt. As in sentence-transformers, a role without a prompt uses none, even if there
    is a default prompt.

    Raises:
        RequestError: The model has no prompt of that name.
    """
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
        return known.get(role or behaviour.role or default or "", "")
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
            f"The prompt has {len(ids):,} tokens; the model takes {tokenizer.model_max_length:,}.\nUse a shorter one.",
            limit=tokenizer.model_max_length,
        )
    # The special token at the end belongs to the end of a text, not to its prompt.
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _check_prompt(prompt: object) -> str:
    check_option_text(prompt, "The prompt", "prompt")
    return str(prompt)


def _list_prompts(known: dict[str, str]) -> str:
    return f"the prompts {', '.join(map(repr, sorted(known)))}" if known else "no prompts"
