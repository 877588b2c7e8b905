"""The options that `medvllm run` and `medvllm batch` share: what is read, and what a task takes as arguments."""

from typing import Annotated

import typer

Task = Annotated[
    str | None,
    typer.Option(help="What to do, such as embed, ner or redact; the model's own task when left out."),
]
Format = Annotated[
    str | None,
    typer.Option(help="Format of the input: lines, jsonl, json, csv, tsv or parquet."),
]
TextColumn = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Column of the texts, text when left out; twice for pairs of texts."),
]
IdColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column of the ids, which the output keeps; id when left out."),
]
TopK = Annotated[int | None, typer.Option(min=1, help="How many answers to give.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of an entity, from 0 to 1.")]
Labels = Annotated[
    list[str] | None, typer.Option(metavar="LABELS", help="Only entities with these labels, separated by commas.")
]
Aggregation = Annotated[
    str | None, typer.Option(help="How the pieces of a word decide its label: first, max, average, simple or any.")
]
Operators = Annotated[
    str | None, typer.Option(metavar="JSON", help="What redact writes for each label, as JSON or @FILE.")
]
PromptName = Annotated[
    str | None, typer.Option(help="Name of the model's prompt to put before each text to embed, such as query.")
]
Prompt = Annotated[str | None, typer.Option(help="Text to put before each text to embed.")]
Role = Annotated[str | None, typer.Option(help="What the texts to embed are: query or document.")]
Query = Annotated[str | None, typer.Option(help="What the texts to rerank should answer.")]
Targets = Annotated[
    list[str] | None, typer.Option(metavar="WORD", help="Score only this word for each [MASK]; repeat for more.")
]
Activation = Annotated[str | None, typer.Option(help="How classify makes scores: softmax, sigmoid or none.")]
Windows = Annotated[str | None, typer.Option(help="How classify joins the windows of a long text: mean or max.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest text to generate, in tokens.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text that ends what is generated; repeat for more.")
]
Temperature = Annotated[float | None, typer.Option(help="0 for the likeliest text, above to sample.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens with this probability.")]
Seed = Annotated[int | None, typer.Option(help="Start of the random numbers, to sample the same again.")]
AllowSpecialTokens = Annotated[
    bool, typer.Option("--allow-special-tokens", help="Read [SEP] and the like in a text as special tokens.")
]
Precision = Annotated[str, typer.Option(help="In which precision an engine may compute: float32, or int8 for onnx.")]
