"""The engines and the precisions by name, and which engines are installed."""

from functools import cache
from typing import Literal, get_args

from medvllm.errors import MissingDependencyError, RequestError
from medvllm.near_names import did_you_mean, near_names

EngineName = Literal["torch", "onnx", "openvino", "auto"]
GraphEngine = Literal["onnx", "openvino"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
GRAPH_ENGINES: tuple[GraphEngine, ...] = get_args(GraphEngine)
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def check_engine(engine: object) -> EngineName:
    """Return the name of an engine.

    Raises:
        RequestError: There is no such engine.
        MissingDependencyError: Its library is not installed.
    """
    for known in ENGINES:
        if engine == known:
            if known in GRAPH_ENGINES and engine_version(known) is None:
                raise MissingDependencyError(
                    f"Engine {known!r} needs the package {_PACKAGES[known]!r}, which is not installed.\n"
                    f"Install it with: pip install 'medvllm[{known}]'",
                    package=_PACKAGES[known],
                )
            return known
    near = did_you_mean(near_names(engine, ENGINES)) if isinstance(engine, str) else ""
    raise RequestError(
        f"There is no engine {str(engine)[:80]!r}.{near}\nUse one of: {', '.join(ENGINES)}", option="engine"
    )


def check_precision(precision: object, engine: EngineName) -> Precision:
    """Return the name of a precision.

    Raises:
        RequestError: There is no such precision, or the engine does not compute in it.
        MissingDependencyError: The library that computes in it is not installed.
    """
    for known in PRECISIONS:
        if precision == known:
            if known == "int8" and engine not in ("onnx", "auto"):
                raise RequestError(
                    f"Engine {engine!r} does not compute in precision 'int8'; engine 'onnx' does.\n"
                    "Use: engine='onnx', precision='int8'",
                    option="precision",
                )
            if known == "int8":
                check_engine("onnx")
            return known
    near = did_you_mean(near_names(precision, PRECISIONS)) if isinstance(precision, str) else ""
    raise RequestError(
        f"There is no precision {str(precision)[:80]!r} for engines.{near}\nUse one of: {', '.join(PRECISIONS)}",
        option="precision",
    )


@cache
def engine_version(engine: str) -> str | None:
    """Return the version of an engine's library, without importing it. None if it is not installed."""
    from importlib import metadata as packages  # here: listing and torch need none

    try:
        return packages.version(_PACKAGES[engine])
    except packages.PackageNotFoundError:
        return None


def installed_engines() -> tuple[GraphEngine, ...]:
    """Return the engines whose libraries are installed."""
    return tuple(engine for engine in GRAPH_ENGINES if engine_version(engine) is not None)
