"""Completes names of models in the shell. It imports no torch and never raises an error."""

from collections.abc import Iterator

from medvllm.errors import MedVLLMError

_MAX_NAMES = 200


def model_names(incomplete: str) -> Iterator[str]:
    """Yield the registered names that begin with `incomplete`, or the other names that do if there are none."""
    from medvllm.model_registry import registry

    typed = incomplete.casefold()
    try:
        entries = registry.list_models().values()
    except (MedVLLMError, OSError):
        return
    names = [entry.name for entry in entries if entry.name.casefold().startswith(typed)]
    others = (alias for entry in entries for alias in entry.source.also_known_as if alias.casefold().startswith(typed))
    yield from (names or [*others])[:_MAX_NAMES]


def stored_names(incomplete: str) -> Iterator[str]:
    """Yield the stored names that begin with `incomplete`."""
    from medvllm.model_registry import registry

    try:
        yield from [name for name in registry.catalog.names() if name.casefold().startswith(incomplete.casefold())][
            :_MAX_NAMES
        ]
    except (MedVLLMError, OSError):
        return
