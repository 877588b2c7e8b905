"""`medvllm batch`: run a task over a large corpus, in parts, and go on after a stop."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medvllm.cli.output import print_json
from medvllm.cli.parameters import Device, Dtype, Json, ModelName, load_options
from medvllm.cli.plain_help import Group
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
from medvllm.cli.streams import say
from medvllm.model_registry import registry
from medvllm.words import usual_task

_RUN = "run"


class _BatchGroup(Group):
    """Takes `medvllm batch NAME` for `medvllm batch run NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Run a task over a large corpus. If it is stopped, the same command goes on.",
    no_args_is_help=True,
    cls=_BatchGroup,
)


@app.command(_RUN)
def run(
    name: ModelName,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Further inputs, as a shell writes them for --in *.csv."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="FILE",
            help="File of texts (.jsonl, .json, .csv, .tsv, .parquet, or one text a line), folder of .txt files or of "
            "a saved Hugging Face dataset, URL such as s3://bucket/notes.jsonl, or a pattern such as "
            "'notes/*.parquet'; repeat for more.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the parts: a new one, or that of this batch."),
    ] = None,
    task: Task = None,
    format: Format = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    rows_per_part: Annotated[int, typer.Option(min=1, help="How many rows a part has.")] = 1000,
    output_format: Annotated[str, typer.Option(help="Format of the parts: parquet or jsonl.")] = "parquet",
    workers: Annotated[int, typer.Option(min=1, help="How many processes answer, or actors of Ray.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Answer with actors of Ray: local starts one here, auto and host:port are clusters."
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Remove the batch in the folder, and begin anew.")] = False,
    top_k: TopK = None,
    threshold: Threshold = None,
    labels: Labels = None,
    aggregation: Aggregation = None,
    operators: Operators = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    role: Role = None,
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
        str, typer.Option(help="What computes: torch, onnx, openvino, or auto for the fastest.")
    ] = "torch",
    precision: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Run a task over a large corpus, in parts. If it is stopped, the same command goes on with it.

    `medvllm batch NAME` means `medvllm batch run NAME`.

    Each part is a file in FOLDER/parts; manifest.jsonl has its digest. A row that cannot be answered does not stop the
    others: bad_rows.jsonl says where it stands and why.
    """
    from medvllm.engine.model_runner.runner import ModelRunner
    from medvllm.engines.kinds import check_engine, check_precision

    sources = [*(source or ()), *(more or ())]
    if not source:
        raise typer.BadParameter("pass what to read: --in FILE")
    if out is None:
        raise typer.BadParameter("pass where to write to: --out FOLDER")
    given = given_arguments(
        top_k=top_k,
        threshold=threshold,
        labels=labels,
        aggregation=aggregation,
        operators=operators,
        prompt_name=prompt_name,
        prompt=prompt,
        role=role,
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
    chosen_engine = check_engine(engine)
    runner = ModelRunner(
        name,
        registry=registry,
        engine=chosen_engine,
        precision=check_precision(precision, chosen_engine),
        **load_options(device, dtype),
    )
    chosen = usual_task(task) if task is not None else runner.task
    if chosen != "rerank":
        check_options(chosen, given)
    try:
        done = runner.batch(
            sources,
            out,
            task=chosen,
            text_column=text_column,
            id_column=id_column,
            format=format,
            rows_per_part=rows_per_part,
            output_format=output_format,  # type: ignore[arg-type]
            workers=workers,
            ray=ray,
            restart=restart,
            **given,
        )
    except KeyboardInterrupt:
        say(f"Stopped. The parts that are finished stay in '{out}'. To go on, give the same command again.")
        raise
    say(str(done))
    if as_json:
        print_json(done.to_dict())


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a batch.")], as_json: Json = False
) -> None:
    """Print how far a batch is, at which rate it goes on, and how long the rest takes."""
    from medvllm.engine.model_runner.batch.summary import read_status

    found = read_status(folder)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))
