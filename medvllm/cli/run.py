"""`medvllm run`: run texts through a model."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvllm import destination
from medvllm.cli.parameters import Device, Dtype, Json, ModelName, load_options
from medvllm.cli.running.options import check_options, given_arguments
from medvllm.cli.running.parameters import (
    Activation,
    Aggregation,
    AllowSpecialTokens,
    Format,
    IdColumn,
    Labels,
    MaxNewTokens,
    Operators,
    Precision,
    Prompt,
    PromptName,
    Query,
    Role,
    Seed,
    Stop,
    Targets,
    Task,
    Temperature,
    TextColumn,
    Threshold,
    TopK,
    TopP,
    Windows,
)
from medvllm.cli.running.places import LocalPlace, Place, ServerPlace, check_place
from medvllm.cli.streams import say
from medvllm.engines.kinds import check_engine, check_precision
from medvllm.errors import RequestError
from medvllm.progress import is_terminal, track_texts
from medvllm.words import usual_task

if TYPE_CHECKING:
    from medvllm.cli.running.printers import Printer
    from medvllm.corpora.reading.columns import Columns
    from medvllm.corpora.reading.corpus import Corpus
    from medvllm.corpora.writing.writer import Writer


def run(
    name: ModelName,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; read from standard input when left out.")
    ] = None,
    task: Task = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="File of texts: one a line, or .jsonl, .json, .csv, .tsv or .parquet; or a folder of .txt files "
            "or of a saved Hugging Face dataset; - is standard input."
        ),
    ] = None,
    format: Format = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File for the results: .jsonl, .json, .csv, .parquet, .npy for vectors, or .txt for texts; - prints "
            "JSON lines.",
        ),
    ] = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    labels: Labels = None,
    aggregation: Aggregation = None,
    operators: Operators = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    role: Role = None,
    query: Query = None,
    targets: Targets = None,
    activation: Activation = None,
    windows: Windows = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    allow_special_tokens: AllowSpecialTokens = False,
    device: Device = None,
    dtype: Dtype = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What computes: torch, onnx, openvino, or auto for the fastest. By default torch, or what "
            "--server has."
        ),
    ] = None,
    precision: Precision = "float32",
    receipt_file: Annotated[
        Path | None, typer.Option("--receipt", metavar="FILE", help="Also write a receipt of what answered, as JSON.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this server, with the key of MEDVLLM_API_KEY.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Load the model here, also if a server of this user runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run texts through a model and print or write the results: vectors, entities, labels, redacted notes or answers.

    Files are read, and results written, in parts: they may be larger than the memory.

    If a server of this user runs (medvllm serve) with the same catalogue and settings, it answers for a few texts.
    """
    given = given_arguments(
        top_k=top_k,
        threshold=threshold,
        labels=labels,
        aggregation=aggregation,
        operators=operators,
        prompt_name=prompt_name,
        prompt=prompt,
        role=role,
        query=query,
        targets=targets,
        activation=activation,
        windows=windows,
        max_new_tokens=max_new_tokens,
        stop=stop,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        allow_special_tokens=allow_special_tokens,
    )
    _check_usage(texts, file, format, text_column, id_column, output, receipt_file, as_json=as_json)
    loading = load_options(device, dtype)
    check_place(server, local=local, loading=loading)

    from medvllm.engine.model_runner.corpus_run import CorpusRun

    place = ServerPlace(server, name) if server is not None else LocalPlace(name)
    is_named = server is not None  # such a server checks what is to compute
    chosen_engine = check_engine("torch" if is_named or engine is None else engine)
    chosen_precision = check_precision("float32" if is_named else precision, chosen_engine)
    chosen = usual_task(task) if task is not None else place.task()
    if chosen is not None:
        check_options(chosen, given)
    _check_output(output, receipt_file, chosen, has_ids=id_column is not None)
    run = None
    try:
        with ExitStack() as stack:
            columns = _columns(place, chosen, text_column, id_column)
            corpus = stack.enter_context(_open_corpus(texts, file, format, columns))
            shown = stack.enter_context(_open_output(output, as_json=as_json))
            with_receipt = as_json or receipt_file is not None or _has_receipt(output)
            is_elsewhere = is_named or not (local or loading)
            asked = {"engine": engine if is_named else chosen_engine, "precision": precision}
            answerer = place.answerer(stack, given, asked, with_receipt=with_receipt) if is_elsewhere else None
            run = CorpusRun(
                name,
                corpus,
                chosen,
                arguments=given,
                with_receipt=with_receipt,
                engine=chosen_engine,
                precision=chosen_precision,
                listen=getattr(shown, "listen", None),
                server=answerer,
                **loading,
            )
            advance = stack.enter_context(_track(output, corpus))
            with _naming_options(given), closing(iter(run)) as answered:
                for answers in answered:
                    shown.write(answers)
                    advance(corpus.done, answers.offset + len(answers.given))
            shown.finish(run.receipt.to_dict() if run.receipt else None)
            if answerer is not None and answerer.has_answered and server is None:
                say(f"Answered by the server of this user at {answerer.url}. To run the model here: --local")
    finally:  # write the receipt even if the results cannot be written
        if receipt_file is not None and run is not None and run.receipt is not None:
            content = json.dumps(run.receipt.to_dict(), indent=2) + "\n"
            destination.write_output(receipt_file, content.encode())


def _check_usage(
    texts: list[str] | None,
    file: Path | None,
    format: str | None,
    text_column: list[str] | None,
    id_column: str | None,
    output: Path | None,
    receipt_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Raise a usage error for options that do not go together."""
    if texts and file:
        raise typer.BadParameter("pass texts or --file, not both")
    is_typed = bool(texts) and texts != ["-"]
    if is_typed and (format or text_column or id_column):
        option = "--format" if format else "--text-column" if text_column else "--id-column"
        raise typer.BadParameter(f"{option} is for a file, not for texts that are typed")
    if not texts and file is None and is_terminal(sys.stdin):
        raise typer.BadParameter("pass a text, --file FILE, or texts on standard input, one per line")
    if text_column and len(text_column) > 2:
        raise typer.BadParameter("pass --text-column once, or twice for pairs of texts")
    if as_json and output is not None:
        raise typer.BadParameter("pass --json, which prints JSON, or --output, not both")
    if output is not None and receipt_file is not None and output.absolute() == receipt_file.absolute():
        raise typer.BadParameter("--output and --receipt must be two files")


def _columns(place: "Place", task: str | None, text_column: list[str] | None, id_column: str | None) -> "Columns":
    """Return the columns to read. Without --text-column, a model of pairs takes those of its inputs."""
    from medvllm.corpora.reading.columns import Columns
    from medvllm.engine.model_runner.corpus_run import columns_for

    return columns_for(task, Columns(tuple(text_column or ()), id_column), place.inputs())


def _check_output(output: Path | None, receipt_file: Path | None, task: str | None, *, has_ids: bool) -> None:
    """Raise an error if the results could not be written, before the work."""
    if output is not None:
        from medvllm.corpora.writing.writers import choose_writer
        from medvllm.engine.model_runner.corpus_run import check_output_kind

        writer = choose_writer(output)
        if task is not None:
            check_output_kind(task, writer.kind)
        if has_ids and not writer.has_ids:
            raise typer.BadParameter(
                f"a {output.suffix} file has no place for ids; its order is that of the texts. Leave out --id-column, "
                "or write .jsonl"
            )
    for target in (output, receipt_file):
        if target is not None:
            destination.check_output(target)


def _open_corpus(
    texts: list[str] | None, file: Path | None, format: str | None, columns: "Columns"
) -> "AbstractContextManager[Corpus]":
    from medvllm.corpora.reading.corpus import FORMATS, STANDARD_INPUT, corpus_of, open_corpus

    if format is not None and format not in FORMATS:
        raise typer.BadParameter(f"{format!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    if texts and texts != ["-"]:
        return nullcontext(corpus_of(texts, columns))
    return open_corpus(file or STANDARD_INPUT, columns, format)


@contextmanager
def _open_output(output: Path | None, *, as_json: bool) -> "Iterator[Printer | Writer]":
    from medvllm.cli.running.printers import JsonPrinter, TextPrinter

    if output is None and as_json:
        yield JsonPrinter()
        return
    if output is None:
        printer = TextPrinter()
        try:
            yield printer
        finally:
            printer.stop()
        return
    from medvllm.corpora.writing.writers import open_writer

    with open_writer(output) as writer:
        yield writer


def _has_receipt(output: Path | None) -> bool:
    return output is not None and output.suffix.lower() == ".json"


def _track(output: Path | None, corpus: "Corpus") -> AbstractContextManager[Callable[[int, int], None]]:
    """Show a progress bar, unless the results appear on the terminal."""
    if is_terminal(sys.stdout) if output is None or str(output) == "-" else output.is_char_device():
        return nullcontext(lambda done, texts: None)
    return track_texts("Running", corpus.total)


@contextmanager
def _naming_options(given: dict[str, Any]) -> Iterator[None]:
    """Make an error that names an argument a usage error that names the option."""
    try:
        yield
    except RequestError as error:
        if error.task is not None and error.argument in given:
            check_options(error.task, given)
        raise
