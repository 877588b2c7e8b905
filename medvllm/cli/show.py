"""`medvllm show`: the facts of a model with their provenance, and its versions."""

from collections.abc import Iterator
from typing import Annotated

import typer

from medvllm.catalog.log import VersionRecord
from medvllm.cli.completion import model_names
from medvllm.cli.output import print_groups, print_json
from medvllm.cli.parameters import Json
from medvllm.facts import GROUPS, known_facts
from medvllm.local_files import local_files
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import registry
from medvllm.names import is_commit, parse_name
from medvllm.one_line import one_line
from medvllm.quantities import shown_size

_Row = tuple[str, object, object]


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a registered model.", autocompletion=model_names)
    ],
    as_json: Json = False,
) -> None:
    """Show the facts of a model, where each was found, and its versions.

    Provenance: `seen` in a primary source, `verified` by experiment, or `likely`.
    """
    metadata = registry.get_metadata(name)
    versions = registry.catalog.version_log(metadata.name) if metadata.origin == "stored" else []
    if as_json:
        log = [record.to_dict() for record in versions]
        aliases = {alias: record.version for record in versions for alias in record.aliases}
        numbers = [record.version for record in versions] or [metadata.version]
        print_json(metadata.to_dict() | {"versions": numbers, "version_aliases": aliases, "version_log": log})
        return
    print_groups(("FACT", "VALUE", "PROVENANCE"), [*_facts(metadata), map(_version, versions)])


def _facts(metadata: ModelMetadata) -> Iterator[list[_Row]]:
    """Yield the known facts in their groups. The licence has a row even if it is not known."""
    facts = metadata.to_dict()
    provenance, baseline = facts.pop("provenance"), facts.pop("baseline")
    facts["baseline_cases"] = len(baseline) or None
    for group in ("", *GROUPS):
        state = _source_state(metadata) if group == "source" else {}
        rows: list[_Row] = []
        for fact, value in facts.items():
            if (known_facts()[fact].group if fact in known_facts() else "") != group:
                continue
            if fact == "license" and value is None:
                rows.append((fact, "not known", ""))
            elif fact not in state and value not in (None, "", [], {}):
                rows.append((fact, one_line(value, "; "), provenance.get(fact, "")))
        yield rows + [(fact, value, provenance.get(fact, "")) for fact, value in state.items()]


def _source_state(metadata: ModelMetadata) -> dict[str, str]:
    """Return which commit a load takes, and whether the files are on this machine."""
    state = {}
    location = parse_name(metadata.location)
    if location.kind != "folder" and not is_commit(location.suffix or metadata.source.revision):
        branch = location.suffix or metadata.source.revision or "main"
        state["revision"] = f"{branch} (not pinned: the commit of the first pull)"
    found = local_files(metadata)
    size = f"yes, {shown_size(found.size_bytes)}" if found else ""
    state["here"] = size or ("no: the folder contains no model" if location.kind == "folder" else "no")
    return state


def _version(record: VersionRecord) -> _Row:
    """Return the row of a version: when, by whom and why it was created, and its state."""
    made = " ".join(text for text in ((record.at or "")[:10], f"by {record.who}" if record.who else "") if text)
    why = f"{made}: {record.reason}" if record.reason else made
    aliases = [f"{alias} (protected)" if record.protected else alias for alias in record.aliases]
    states = [
        "default version" if record.is_meant else "",
        f"aliases: {', '.join(aliases)}" if aliases else "",
        "locked" if record.locked else "not locked",
        f"baseline {(record.baseline_at or '')[:10]}".strip() if record.baseline_digest else "no baseline",
        f"deprecated: {record.deprecated}" if record.deprecated else "",
    ]
    return f"version {record.version}", why or None, "; ".join(state for state in states if state)
