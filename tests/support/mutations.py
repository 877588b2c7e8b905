"""Files that something happened to: bytes that were cut, flipped or added, and structures with hostile values."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_DEEP = "@deep@"  # stands for lists in lists, which json itself cannot write so deep
_TWICE = "\x01"  # at the end of a key that is to be there twice

# One edit: what is done, where (taken modulo the length), and with which bytes.
Edit = tuple[str, int, bytes]
# One change: of which place (taken modulo the number of places), what is done, and with which value.
Change = tuple[int, str, Any]

edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "cut", "insert", "delete", "overwrite"]),
        st.integers(0, 1 << 40),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)
hostile: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, 1.5, 10**9, 2**31, 2**63, 10**30, -(10**18)]),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 1e308]),
    st.sampled_from(["", "x", "x" * 300, "../../x", "/etc/passwd", "a/b", ".", "..", "a\0b", "\ud800", _DEEP]),
    st.sampled_from([[], {}, [0], [1, 2, 3], {"x": 1}, [[10**9]], {"0": None}]),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-4, 1 << 20), max_size=3),
)


def changes(values: st.SearchStrategy[Any] = hostile) -> st.SearchStrategy[list[Change]]:
    """Changes of a structure, which get `values` for what is in it."""
    kinds = st.sampled_from(["set", "set", "remove", "rename", "twice", "add", "wrap", "swap"])
    return st.lists(st.tuples(st.integers(0, 1 << 16), kinds, values), min_size=1, max_size=3)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """Return the content with its bytes edited."""
    out = bytearray(content)
    for kind, where, new in edits:
        at = where % (len(out) + 1)
        if kind == "flip" and out:
            out[at % len(out)] ^= 1 << new[0] % 8
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = new
        elif kind == "delete":
            del out[at : at + new[0]]
        elif kind == "overwrite":
            out[at : at + len(new)] = new
    return bytes(out)


def changed(content: Mapping[str, Any], changes: list[Change]) -> Any:
    """Return a structure of dicts and lists with places in it changed."""
    out: Any = copy.deepcopy(dict(content))
    for where, kind, new in changes:
        places, value = _places(out), copy.deepcopy(new)
        if not places:
            return value
        inside, key = places[where % len(places)]
        if kind == "set":
            inside[key] = value
        elif kind == "remove":
            del inside[key]
        elif kind == "wrap":
            inside[key] = [inside[key]]
        elif kind == "swap":
            other, there = places[(where >> 4) % len(places)]
            inside[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(inside[key])
        elif isinstance(inside, list):
            inside.append(value)
        elif kind == "rename":
            inside[value if isinstance(value, str) else repr(value)[:40]] = inside.pop(key)
        else:
            inside[f"{key}{_TWICE}" if kind == "twice" else "added"] = value
    return out


def to_json(content: Any) -> bytes:
    """Write a structure as JSON as it is: with keys that are there twice, NaN, and halves of characters."""
    text = json.dumps(content).replace(json.dumps(_TWICE)[1:-1], "").replace(json.dumps(_DEEP), "[" * 5000 + "]" * 5000)
    return text.encode()


def to_toml(content: Any) -> bytes:
    """Write a structure as TOML, in its own way: a table in every value's place, and what has no TOML as a text."""
    if not isinstance(content, dict):
        return repr(content).encode("utf-8", "surrogatepass")
    return "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in content.items()).encode(
        "utf-8", "surrogatepass"
    )


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace(_TWICE, "")
    return "[" * 5000 + "]" * 5000 if text == _DEEP else json.dumps(text, ensure_ascii=False)


def _places(structure: Any) -> list[tuple[Any, Any]]:
    """Return every place of a structure: the dict or list, and the key or index in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [structure]
    while waiting:
        inside = waiting.pop()
        keys = inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        for key in keys:
            found.append((inside, key))
            waiting.append(inside[key])
    return found
