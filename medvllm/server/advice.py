"""The library's messages in words for clients of HTTP, who have no command line of the server and no Python."""

import ast
import json
import re
from collections.abc import Mapping

ASK = "Ask whoever runs the server"

# What only the one who runs the server can do.
_FOR_OPERATOR = re.compile(
    r"register|Register|medvllm (?!list|show)|pip install|export |PYTHONPATH|openssl|python -c|unpin|\bvault="
    r"|\bState\b|max_length"
)
_MODELS = "The models of the server: GET /v1/models"
_SHOW = re.compile(r"medvllm show (\S+)")
_PLACES = re.compile(r"hf://|file://|models:/|\./|medvllm list")
_CALL = re.compile(r"(?:runner\.)?\b(entities|assertions|rerank|generate)\((.*)\)$")
_ROUTES = {
    "entities": "POST /v1/entities",
    "assertions": "POST /v1/assertions",
    "rerank": "POST /v1/rerank",
    "generate": "POST /v1/completions",
}
_OPTION = re.compile(r"(?<![\w.\"'])([a-z_]+)=(…|\[.*\]|\{.*\}|'[^']*'|[\w.-]+)")
_CONSTANT = re.compile(r"(?<![\w'\"])(?:True|False|None)(?![\w'\"])")
_ASIDE = re.compile(r" \(([a-z_]+)='[^']*'\)")


def for_client(message: str, names: Mapping[str, str] | None) -> str:
    """Return a message of the library for a client of HTTP.

    Args:
        message: The message: what happened, and after it lines that lead out.
        names: What the client's protocol calls the options of the library that have another name there, or none: of
            one that maps to "", the client has no way to send it. With None, the client is a Python program of the
            library, and sends them as they are.
    """
    what, *lines = message.split("\n")
    if names is not None:
        what = _ASIDE.sub(lambda found: found[0] if names.get(found[1], found[1]) else "", what)
    advice = dict.fromkeys(filter(None, (_translate(line, names) for line in lines)))
    return "\n".join([_in_words(what, names), *advice])


def _translate(line: str, names: Mapping[str, str] | None) -> str:
    if found := _SHOW.search(line):
        return f"Its versions: GET /v2/models/{found[1]}"
    if _PLACES.search(line):
        return _MODELS
    if "long_input='window'" in line and names is not None and names.get("long_input"):
        return f'Shorten the text, or let it be read in windows: "{names["long_input"]}": "window"'
    if "MEDVLLM_MAX_QUEUED_TOKENS" in line:
        return "Try again then."
    if line.startswith("End a lease"):
        return f"Try again later, or {ASK[0].lower()}{ASK[1:]}."
    if "medvllm.Request(" in line:
        return "Send fewer or shorter texts, or allow more time if the request limits it."
    if _FOR_OPERATOR.search(line):
        return f"{ASK}, who can do this: {line[:1].lower()}{line[1:]}"
    if names is None:
        return line
    if any(names.get(found[1]) == "" for found in _OPTION.finditer(line)):
        return f"{ASK}."
    if found := _CALL.search(line):
        given = _to_json(found[2])
        return line[: found.start()] + ('POST /v1/run with "texts": ' + given if given else _ROUTES[found[1]])
    return _in_words(line, names)


def _in_words(line: str, names: Mapping[str, str] | None) -> str:
    """Return a line with the options of Python as fields of JSON, and in the names of a protocol."""
    if names is None:
        return line

    def replace(found: re.Match[str]) -> str:
        name = names.get(found[1], found[1])
        value = _to_json(found[2])
        return f'"{name}": {value}' if value else f'"{name}"'

    line = _CONSTANT.sub(lambda found: _to_json(found[0]), _OPTION.sub(replace, line))
    for name, other in names.items():
        if other:
            line = re.sub(rf"\b{name}\b", other, line)
    return line


def _to_json(text: str) -> str:
    """Return a value of Python as JSON; an empty text if it is none."""
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError):
        return ""
