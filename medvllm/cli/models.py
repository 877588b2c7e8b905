"""`medvllm list` and `medvllm show`: what is registered. Neither imports torch."""

from typing import Annotated

import typer

from medvllm.cli.output import print_json, print_table
from medvllm.metadata import ModelType
from medvllm.registry import registry

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_(
    pattern: Annotated[str | None, typer.Argument(help="Glob on the name, such as 'bio*'.")] = None,
    model_type: Annotated[
        ModelType | None, typer.Option("--type", help="Only models of this type.", case_sensitive=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only models that are ready for this task.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only models with this tag; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered models."""
    entries = registry.list_models(model_type, task=task, tags=tag or (), match=pattern)
    if as_json:
        print_json([metadata.to_dict() for metadata in entries.values()])
        return
    rows = ((name, m.model_type.name, ", ".join(m.tasks) or None, m.description) for name, m in entries.items())
    print_table(("NAME", "TYPE", "TASKS", "DESCRIPTION"), rows)


def show(name: Annotated[str, typer.Argument(help="Name of a registered model.")], as_json: Json = False) -> None:
    """Show what is known of a model, and how each fact is known."""
    metadata = registry.get_metadata(name)
    facts = metadata.to_dict()
    if as_json:
        print_json(facts)
        return
    evidence = facts.pop("evidence")
    rows = (
        (fact, ", ".join(map(str, value)) if isinstance(value, list) else value, evidence.get(fact, ""))
        for fact, value in facts.items()
        if value not in (None, "", [], {})
    )
    print_table(("FACT", "VALUE", "EVIDENCE"), rows)
