"""`medvllm run`: texts through a model."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from medvllm import destination
from medvllm.cli.models import Json, ModelName
from medvllm.cli.output import print_json, print_table
from medvllm.engine.model_runner import ModelRunner
from medvllm.errors import RequestError
from medvllm.progress import is_terminal


def run(
    name: ModelName,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; or give them on standard input.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="embed, fill-mask, ner or deid; the entry's own task when left out.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text a line; - is standard input.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Prompt to put in front of each text to embed, such as query.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to put in front of each text to embed.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Also write the receipt of what answered, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run texts through a model and print the results: vectors, the words that fill a [MASK], or labelled spans."""
    if receipt_file is not None:
        destination.check(receipt_file)
    given = _texts(texts, file)
    options: dict[str, Any] = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    prompts = {key: value for key, value in (("prompt_name", prompt_name), ("prompt", prompt)) if value is not None}
    result, done, receipt = ModelRunner(name, **options).run(task, given, **prompts)
    if done == "embed":
        records: list[Any] = result.to_dict()
        columns: tuple[str, ...] = ("TEXT", "TOKENS", "WINDOWS", "VECTOR")
        rows: Iterable[Any] = ((i, r["tokens"], r["windows"], _vector(r["vector"])) for i, r in enumerate(records, 1))
    elif done == "fill-mask":
        records = [{"gaps": [[vars(fill) for fill in gap] for gap in gaps]} for gaps in result]
        columns = ("TEXT", "GAP", "TOKEN", "SCORE")
        rows = (
            (i, j, fill["token"], f"{fill['score']:.4f}")
            for i, record in enumerate(records, 1)
            for j, gap in enumerate(record["gaps"], 1)
            for fill in gap
        )
    else:
        records = [tags.to_dict() for tags in result]
        columns = ("TEXT", "START", "END", "LABEL", "SCORE", "SPAN")
        rows = (
            (i, span.start, span.end, span.label, f"{span.score:.4f}", text[span.start : span.end])
            for i, (text, tags) in enumerate(zip(given, result, strict=True), 1)
            for span in tags.spans
        )
    try:  # neither is lost for want of the other
        if as_json:
            print_json({"task": done, "results": records, "receipt": receipt.to_dict()})
        else:
            print_table(columns, rows)
    finally:
        if receipt_file is not None:
            destination.write(receipt_file, (json.dumps(receipt.to_dict(), indent=2) + "\n").encode())


def _texts(texts: list[str] | None, file: Path | None) -> list[str]:
    if texts and file:
        raise typer.BadParameter("give texts or --file, not both")
    if texts and texts != ["-"]:
        return texts
    if file is None and not texts and is_terminal(sys.stdin):
        raise typer.BadParameter("give a text, --file, or texts on standard input, one a line")
    try:
        content = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        lines = _lines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(
            f"The input is not UTF-8: byte {error.start + 1:,} cannot be read.\n"
            "Convert it first: iconv -f LATIN1 -t UTF-8"
        ) from error
    except OSError as error:
        raise RequestError(f"Texts cannot be read from {str(file)!r}: {error.strerror}.") from error
    if not any(line.strip() for line in lines):
        raise RequestError("There is no text in the input.")
    return lines  # empty ones too: the number of a result is that of its line


def _lines(content: str) -> list[str]:
    """Return the lines of a file; other characters that end a line somewhere, such as a form feed, are in the text."""
    lines = content.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _vector(values: list[float]) -> str:
    """Return a vector's numbers: all in a pipe, the first on a terminal."""
    if is_terminal(sys.stdout):
        return " ".join(f"{value:+.3f}" for value in values[:6]) + f" … ({len(values)} numbers)"
    return " ".join(f"{value:.7g}" for value in values)
