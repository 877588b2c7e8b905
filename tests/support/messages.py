"""The messages of the library's errors, as they stand in its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2] / "medvllm"


def messages(*kinds: str, without: tuple[str, ...] = ("cli", "client", "server")) -> Iterator[tuple[str, str]]:
    """Yield each message that is written where an error of these classes is made, and the place of it.

    A value in a message is the text of its expression in braces; a line that an expression makes is left out.
    """
    for file in sorted(_ROOT.rglob("*.py")):
        place = file.relative_to(_ROOT)
        if place.parts[0] in without:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", None) in kinds:
                yield f"{place}:{node.lineno}", _text_of(node.args[0])


def _text_of(node: ast.expr) -> str:
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(map(_text_of, node.values))
        case ast.BinOp():
            return _text_of(node.left) + _text_of(node.right)
        case ast.FormattedValue(value=ast.Name() | ast.Attribute() as value):
            return ast.unparse(value).rpartition(".")[2].upper()
    return "VALUE"
