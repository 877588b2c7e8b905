"""Whether a running process uses a stored version that is about to be removed."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from medvllm.errors import CatalogError

if TYPE_CHECKING:
    from medvllm.processes import RecordStore


def check_not_leased(records: "RecordStore", versions: Collection[tuple[str | None, int | None]]) -> None:
    """Raise CatalogError if a process that shares the catalogue has leased one of the versions (name and number)."""
    from medvllm.processes import list_processes

    for record in list_processes([records]):
        for model in record.models:
            if model["leases"] and model["origin"] == "stored" and (model["name"], model["version"]) in versions:
                raise CatalogError(
                    f"Version {model['version']} of model {model['name']!r} is in use by {record.process}.\n"
                    "See which processes use it: medvllm ps\n"
                    f"Remove it anyway: medvllm unregister {model['name']}@{model['version']} --force",
                    model=model["name"],
                )
