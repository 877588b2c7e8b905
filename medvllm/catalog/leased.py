"""Whether a running process uses a stored version that is about to be removed."""

from collections.abc import Collection

from medvllm import processes
from medvllm.errors import CatalogError


def check_not_leased(records: processes.RecordStore, versions: Collection[tuple[str | None, int | None]]) -> None:
    """Raise CatalogError if a process that shares the catalogue has leased one of the versions (name and number)."""
    for record in processes.list_processes([records]):
        for model in record.models:
            if model["leases"] and model["origin"] == "stored" and (model["name"], model["version"]) in versions:
                raise CatalogError(
                    f"Version {model['version']} of model {model['name']!r} is in use by {record.process}.\n"
                    "See which processes use it: medvllm ps\n"
                    f"Remove it anyway: medvllm unregister {model['name']}@{model['version']} --force",
                    model=model["name"],
                )
