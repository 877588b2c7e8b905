"""A registry of 100,000 entries, beside plain dicts and difflib doing the same."""

import difflib
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from benchmarks.measure import Series, Table, beside, duration, interleaved, timed
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import ModelNotFoundError

COUNT = 100_000
_NAMES = [f"hospital-{i % 100}/model-{i:06}" for i in range(COUNT)]
_TYPES = ("generic", "biomedical", "clinical", "custom")
_MISSPELT, _GLOB = "hospital-50/model-05005x", "*model-0999*"
_LOOKED_UP = _NAMES[:: COUNT // 1000]
_LIST, _LOOKUP, _NEAR = (
    "`list_models()`",
    "`get_metadata`, 1,000 names",
    "`get_metadata(name)`, name nearly right: error",
)

_Pair = tuple[str, Callable[[], object], str, Callable[[], object]]  # ours and the peer, each by its name


def tables(quick: bool) -> list[Table]:
    """Measure registering, listing, filters, look-up and the error for a name that is nearly right."""
    runs = 1 if quick else 3
    return [_registering(runs), _asking(runs)]


def _facts(i: int) -> dict[str, Any]:
    task = "embed" if i % 2 else "fill-mask"
    return {
        "description": "An entry.",
        "tags": ["en", f"ward-{i % 50}"],
        "task": task,
        "model_path": f"hospital/model-{i}",
    }


def _registered() -> ModelRegistry:
    registry = ModelRegistry()
    for i, name in enumerate(_NAMES):
        registry.register(name, _TYPES[i % 4], **_facts(i))
    return registry


def _collected() -> dict[str, dict[str, Any]]:
    return {name: {"type": _TYPES[i % 4], **_facts(i)} for i, name in enumerate(_NAMES)}


def _registering(runs: int) -> Table:
    ours, peer = f"`register`, {COUNT:,} times", f"the same facts into a dict, {COUNT:,} times"
    series = interleaved({ours: partial(timed, _registered), peer: partial(timed, _collected)}, runs)
    reading = (
        f"Registering an entry takes {duration(series[ours].median / COUNT)}: its name and each fact are checked and "
        "copied.\nThe dict checks and copies nothing."
    )
    return Table(f"Registering {COUNT:,} entries", beside(series, {ours: peer}), reading, duration)


def _asking(runs: int) -> Table:
    steps: dict[str, Callable[[], float]] = {}
    peers = {}
    for ours, call, peer, theirs in _pairs(_registered(), _collected()):
        steps |= {ours: partial(timed, call), peer: partial(timed, theirs)}
        peers[ours] = peer
    series = interleaved(steps, 2 * runs + 1)
    return Table(f"Asking a registry of {COUNT:,} entries", beside(series, peers), _reading(series), duration)


def _pairs(registry: ModelRegistry, plain: dict[str, dict[str, Any]]) -> list[_Pair]:
    """Return our calls, each with its peer."""

    def kept(fits: Callable[[str, dict[str, Any]], bool]) -> Callable[[], object]:
        return lambda: {name: facts for name, facts in plain.items() if fits(name, facts)}

    def each(find: Callable[[str], object]) -> Callable[[], object]:
        return lambda: [find(name) for name in _LOOKED_UP]

    def error() -> None:
        with suppress(ModelNotFoundError):
            registry.get_metadata(_MISSPELT)

    tags = {"en", "ward-7"}
    return [
        (_LIST, registry.list_models, "a dict's copy", plain.copy),
        (
            '`list_models("clinical")`',
            partial(registry.list_models, "clinical"),
            "comprehension over dicts: type",
            kept(lambda _, facts: facts["type"] == "clinical"),
        ),
        (
            '`list_models(task="embed")`',
            partial(registry.list_models, task="embed"),
            "comprehension over dicts: task",
            kept(lambda _, facts: facts["task"] == "embed"),
        ),
        (
            '`list_models(tags=["en", "ward-7"])`',
            partial(registry.list_models, tags=["en", "ward-7"]),
            "comprehension over dicts: tags",
            kept(lambda _, facts: tags.issubset(facts["tags"])),
        ),
        (
            f'`list_models(match="{_GLOB}")`',
            partial(registry.list_models, match=_GLOB),
            "comprehension over dicts: `fnmatchcase`",
            kept(lambda name, _: fnmatchcase(name, _GLOB)),
        ),
        (_LOOKUP, each(registry.get_metadata), "dict look-up, 1,000 names", each(plain.__getitem__)),
        (_NEAR, error, "`difflib.get_close_matches`", partial(difflib.get_close_matches, _MISSPELT, plain)),
    ]


def _reading(series: dict[str, Series]) -> str:
    return (
        f"A listing of everything takes {duration(series[_LIST].median)}; a look-up takes "
        f"{duration(series[_LOOKUP].median / len(_LOOKED_UP))}.\n"
        f"The error for a name that is nearly right compares it with every entry: {duration(series[_NEAR].median)}."
    )
