"""`medvllm run`: run texts through a model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medvllm import destination
from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Device, Dtype, Json, ModelName, load_options
from medvllm.engine.model_runner import ModelRunner
from medvllm.errors import RequestError
from medvllm.progress import is_terminal


def run(
    name: ModelName,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; read from standard input when left out.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="embed, fill-mask, ner or deid; the model's own task when left out.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text per line; - is standard input.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Name of the model's prompt to put before each text to embed, such as query.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to put before each text to embed.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Also write a receipt of what answered, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run texts through a model and print the results: vectors, word pieces for each [MASK], or labelled spans."""
    if receipt_file is not None:
        destination.check_output(receipt_file)
    given = _read_texts(texts, file)
    prompts = {key: value for key, value in (("prompt_name", prompt_name), ("prompt", prompt)) if value is not None}
    runner = ModelRunner(name, **load_options(device, dtype))
    result = runner.run(task, given, with_receipt=as_json or receipt_file is not None, **prompts)
    receipt = None if result.receipt is None else result.receipt.to_dict()
    try:  # print the result even if the receipt cannot be written, and the other way round
        if as_json:
            print_json({"task": result.task, "results": result.to_dict(), "receipt": receipt})
        else:
            columns = tuple(column.upper() for column in result.columns)
            print_table(columns, (tuple(map(_cell, row)) for row in result.rows()))
    finally:
        if receipt_file is not None:
            destination.write_output(receipt_file, (json.dumps(receipt, indent=2) + "\n").encode())


def _read_texts(texts: list[str] | None, file: Path | None) -> list[str]:
    if texts and file:
        raise typer.BadParameter("pass texts or --file, not both")
    if texts and texts != ["-"]:
        return texts
    if file is None and not texts and is_terminal(sys.stdin):
        raise typer.BadParameter("pass a text, --file FILE, or texts on standard input, one per line")
    try:
        content = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        lines = _split_lines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(
            f"The input is not UTF-8: byte {error.start + 1:,} cannot be read.\n"
            "Convert it first: iconv -f LATIN1 -t UTF-8"
        ) from error
    except OSError as error:
        raise RequestError(f"Texts cannot be read from {str(file)!r}: {error.strerror}.") from error
    if not any(line.strip() for line in lines):
        where = "Standard input" if file is None or str(file) == "-" else f"File {str(file)!r}"
        raise RequestError(f"{where} contains no text.\nPass texts as arguments: medvllm run NAME 'TEXT'")
    return lines  # with empty ones, so that the number of a result is the number of its line


def _split_lines(content: str) -> list[str]:
    """Return the lines of a file. Only a line feed ends a line: a form feed, for example, is part of a text."""
    lines = content.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _cell(value: object) -> object:
    """Return a cell as it is printed: scores with four digits; vectors whole in a pipe, shortened on a terminal."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if not isinstance(value, list):
        return value
    if is_terminal(sys.stdout):
        return " ".join(f"{number:+.3f}" for number in value[:6]) + f" … ({len(value)} numbers)"
    return " ".join(f"{number:.7g}" for number in value)
