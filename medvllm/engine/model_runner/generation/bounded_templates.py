"""Chat templates with a limit on what they make: they come with a model, and may ask for more than the memory has."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template

MOST_CHARACTERS = 20_000_000  # of one value: five times the longest text
_MOST_TOTAL = 10 * MOST_CHARACTERS  # of all values that one rendering makes, one after another
_MOST_BITS = 100_000  # of a number
_ITEM, _CONTAINER = 8, 64  # what an item of a list, and a list in a list, count, in characters

# Filters that look into a list without writing out what is in it.
_STRUCTURAL = frozenset(
    (
        *("attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list"),
        *("map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort"),
        *("sum", "unique"),
    )
)

_spent: ContextVar[list[int] | None] = ContextVar("_spent", default=None)


class TooLargeError(Exception):
    """A template makes more than it may."""


def render_bounded(source: str, **variables: Any) -> str:
    """Return what a chat template writes, as transformers renders it.

    Raises:
        TooLargeError: A value, or all of them together, would be too large.
        Exception: Whatever the template raises.
    """
    with _budget():
        return str(compile_bounded(source).render(**variables))


@lru_cache(maxsize=16)
def compile_bounded(source: str) -> "Template":
    """Return a compiled template. Nothing large is made meanwhile."""
    with _budget():
        return _environment().from_string(source)


def literal_text(source: str) -> str:
    """Return the text that stands in a template, with NUL characters between its parts."""
    from jinja2 import nodes

    tree = compile_bounded(source).environment.parse(source)
    found = {node.data for node in tree.find_all(nodes.TemplateData)}
    found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(found)


@contextmanager
def _budget() -> Iterator[None]:
    token = _spent.set([0])
    try:
        yield
    finally:
        _spent.reset(token)


@cache
def _environment() -> "Environment":
    """Return the sandbox of transformers, with limits."""
    from jinja2.compiler import CodeGenerator
    from jinja2.nodes import Concat, Getitem, Slice
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    class Generator(CodeGenerator):
        """Writes the two operations that pass the environment by as calls of it."""

        def visit_Concat(self, node: Concat, frame: Any) -> None:
            self.write("environment.join((")
            for each in node.nodes:
                self.visit(each, frame)
                self.write(", ")
            self.write("))")

        def visit_Getitem(self, node: Getitem, frame: Any) -> None:
            if not isinstance(node.arg, Slice):
                super().visit_Getitem(node, frame)
                return
            self.write("environment.spend(")
            self.visit(node.node, frame)
            self.write("[")
            self.visit(node.arg, frame)
            self.write("])")

    class Formatter(SandboxedFormatter):
        def convert_field(self, value: Any, conversion: Any) -> Any:
            return super().convert_field(_check_depth(value), conversion)

        def format_field(self, value: Any, format_spec: str) -> Any:
            _refuse_if(_largest_number(format_spec) > MOST_CHARACTERS)
            _check_depth(value)
            return _spend(super().format_field(value, format_spec))

    class Bounded(ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        spend = staticmethod(lambda value: _spend(value))

        def concat(self, parts: Iterable[str]) -> str:
            return str(_spend("".join(_bounded(parts))))

        def join(self, parts: Iterable[Any]) -> str:
            return self.concat(str(_check_depth(part)) for part in parts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return _spend(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            subject = getattr(__obj, "__self__", None)
            if isinstance(subject, (str, bytes, int)):
                args = _listed(args)
            _check_call(getattr(__obj, "__name__", ""), subject, args, kwargs)
            return _spend(super().call(__context, __obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Any:
            if super().wrap_str_format(value) is None:
                return None
            text, is_map = value.__self__, value.__name__ == "format_map"

            def format_text(*args: Any, **kwargs: Any) -> Any:
                named = args[0] if is_map else kwargs
                listed = () if is_map else args
                _check_call("format", text, listed, named)
                return type(text)(Formatter(self).vformat(text, listed, named))

            return format_text

    found: Any = _cached_compile_jinja_template("").environment  # a new one for each call
    found.__class__ = Bounded
    found.filters = {name: _bound_filter(name, each) for name, each in found.filters.items()}
    found.finalize = _check_depth
    del found.globals["lipsum"], found.filters["urlize"]  # no chat needs them, and what they write has no bound
    return found  # type: ignore[no-any-return]


def _bound_filter(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses what would be too large before it makes it."""
    skipped = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @wraps(apply)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        context, values = args[:skipped], _listed(args[skipped:])
        if name not in _STRUCTURAL:
            for value in (*values, *kwargs.values()):
                _check_depth(value)
        if name == "join" and values:
            values = (_joined(context[0], *values, **kwargs), *values[1:])
            kwargs.pop("attribute", None)
            values = values[:2]
        if values:
            _check_call(name, values[0], values[1:], kwargs)
        return _spend(apply(*context, *values, **kwargs))

    return bounded


def _joined(context: Any, value: Any, d: str = "", attribute: Any = None) -> list[Any]:
    """Return the items that the filter join puts together."""
    from jinja2.filters import make_attrgetter

    items = [*value]
    return items if attribute is None else [*map(make_attrgetter(context.environment, attribute), items)]


def _listed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments with iterators as lists, so that they can be looked at before they are used."""
    return tuple([*_bounded(each)] if isinstance(each, Iterator) else each for each in args)


def _bounded(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield items until they are too much."""
    total = 0
    for part in parts:
        total += _size(part) + 1
        _refuse_if(total > MOST_CHARACTERS)
        yield part


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator in ("+", "*") and isinstance(left, int) and isinstance(right, int):
        _refuse_if(left.bit_length() + right.bit_length() > _MOST_BITS)
    elif operator == "+":
        _refuse_if(_size(left) + _size(right) > MOST_CHARACTERS)
    elif operator == "*":
        size, times = max(_size(left), _size(right)), next((n for n in (left, right) if isinstance(n, int)), 0)
        _refuse_if(size * times > MOST_CHARACTERS)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _refuse_if(right > 0 and left.bit_length() * right > _MOST_BITS)
    elif operator == "%" and isinstance(left, (str, bytes)):
        _check_call("format", left, right if isinstance(right, tuple) else (right,), {})


def _check_call(name: str, subject: Any, args: Collection[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TooLargeError if a method or a filter would make more than it may of what it is called on."""
    given = (*args, *kwargs.values())
    number = max((abs(each) for each in given if isinstance(each, int)), default=0)
    flat = [part for each in given for part in (each if isinstance(each, (list, tuple)) else (each,))]
    text = max((len(each) for each in flat if isinstance(each, (str, bytes))), default=0)
    size = _size(subject)
    made = 0
    if name in ("ljust", "rjust", "center", "zfill", "to_bytes"):
        made = number
    elif name in ("batch", "slice"):
        made = number * _ITEM
    elif name == "round":
        made = number * _MOST_TOTAL // _MOST_BITS  # it makes a number with so many digits
    elif name in ("indent", "expandtabs") and isinstance(subject, str):
        made = (subject.count("\n" if name == "indent" else "\t") + 1) * max(number, text)
    elif name == "wordwrap":
        made = size * text
    elif name == "tojson":
        made = _count_indents(subject) * max(number, text)
    elif name == "strftime_now":
        made = 256 * text  # Python tries with as much memory
    elif name == "replace" and len(given) > 1 and isinstance(given[0], str) and isinstance(subject, str):
        made = size + subject.count(given[0]) * _size(given[1])
    elif name in ("replace", "translate"):
        tables = [new for each in given if isinstance(each, dict) for new in each.values()]
        made = size * max(map(_size, (*given, *tables)), default=1)
    elif name == "join":
        separator, items = (subject, args) if isinstance(subject, (str, bytes)) else (given, [subject])
        between = max(map(_size, separator), default=0) if isinstance(separator, tuple) else _size(separator)
        made = sum(_size(item) + between for each in items if isinstance(each, (list, tuple)) for item in each)
        made += sum(len(each) * (between + 1) for each in items if isinstance(each, (str, bytes)))
    elif name == "sum" and isinstance(subject, (list, tuple)):
        made = sum(map(_size, subject))
    elif name == "format" and isinstance(subject, (str, bytes)):
        pattern = subject if isinstance(subject, str) else subject.decode("latin-1")
        for each in given:
            _check_depth(each)
        widest = max(_largest_number(pattern), number if "*" in pattern else 0)  # in "%*d", a number is a width
        made = widest + (pattern.count("%") + pattern.count("{")) * max(map(_size, given), default=0)
    _refuse_if(made > MOST_CHARACTERS)


def _count_indents(value: Any) -> int:
    """Return how many indents stand before the items of nested lists, at most."""
    total, waiting = 1, [(value, 1)]
    while waiting and total <= MOST_CHARACTERS:
        each, depth = waiting.pop()
        total += depth
        items = each.values() if isinstance(each, dict) else each if isinstance(each, (list, tuple)) else ()
        waiting += [(item, depth + 1) for item in items]
    return total


def _check_depth(value: Any) -> Any:
    """Return a value. Raises TooLargeError if it is too long as a text: a list in a list may stand there many times."""
    if not isinstance(value, (list, tuple, dict, set, frozenset)):
        return value
    total, waiting = 0, [value]
    while waiting and total <= MOST_CHARACTERS:  # without calls, which the limit of steps makes slow
        each = waiting.pop()
        if isinstance(each, (list, tuple, dict, set, frozenset)):
            total += _CONTAINER + len(each)
            waiting += [*each.keys(), *each.values()] if isinstance(each, dict) else each
        elif isinstance(each, (str, bytes)):
            total += len(each)
    _refuse_if(total > MOST_CHARACTERS)
    return value


def _spend(value: Any) -> Any:
    """Return a value that a template made, and count it."""
    size = _size(value)
    if (spent := _spent.get()) is not None:
        spent[0] += size
        _refuse_if(spent[0] > _MOST_TOTAL)
    _refuse_if(size > MOST_CHARACTERS)
    return value


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return _ITEM * len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 0


def _largest_number(text: str) -> int:
    numbers = re.findall("[0-9]+", text)
    return max((int(each.lstrip("0")[:12] or 0) for each in numbers), default=0)


def _refuse_if(is_too_large: bool) -> None:
    if is_too_large:
        raise TooLargeError
