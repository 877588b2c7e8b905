"""What the shell offers when a name is completed. It costs no torch, and is never an error."""

from collections.abc import Iterator

from medvllm.errors import MedVLLMError

_MOST = 200  # names; a shell shows no more


def model_names(incomplete: str) -> Iterator[str]:
    """Give the registered names that begin with what was typed, and their other names where none does."""
    from medvllm.model_registry import registry

    typed = incomplete.casefold()
    try:
        entries = registry.list_models().values()
    except (MedVLLMError, OSError):
        return
    begun = [entry.name for entry in entries if entry.name.casefold().startswith(typed)]
    others = (alias for entry in entries for alias in entry.source.also_known_as if alias.casefold().startswith(typed))
    yield from (begun or [*others])[:_MOST]


def stored_names(incomplete: str) -> Iterator[str]:
    """Give the stored names that begin with what was typed."""
    from medvllm.model_registry import registry

    try:
        yield from [name for name in registry.catalog.names() if name.casefold().startswith(incomplete.casefold())][
            :_MOST
        ]
    except (MedVLLMError, OSError):
        return
