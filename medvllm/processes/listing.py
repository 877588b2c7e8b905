"""The processes that hold models, read from their records."""

import contextlib
from collections.abc import Iterable

from medvllm.errors import MedVLLMError
from medvllm.processes.publisher import publisher
from medvllm.processes.record import ProcessRecord
from medvllm.processes.record_store import ALIVE_S, GONE_S, RecordStore


def list_processes(stores: Iterable[RecordStore]) -> list[ProcessRecord]:
    """Return the records of the processes that are alive. This process is listed as it is now.

    The record of another process is removed only if that process is certainly gone.

    Args:
        stores: The stores to read.

    Raises:
        CatalogError: A catalogue's database cannot be read.
    """
    stores, own_ids = list(stores), publisher.record_ids()
    found: dict[str, ProcessRecord] = {}
    for holder in publisher.holders():
        is_here = any(store in stores for store in holder.record_stores())
        if is_here and (models := holder.describe_models(will_publish=False)):
            found[f"{id(holder)}"] = ProcessRecord.of_this_process(models)
    for store in stores:
        for stored in store.read_all():
            record = None if stored.id in own_ids else ProcessRecord.parse(stored.text)
            if record is None:
                continue
            state = record.process.state(stored.owner)
            if state == "alive" or (state == "unknown" and stored.age_s < ALIVE_S):
                found[stored.id] = record
            elif state == "gone" or stored.age_s > GONE_S:
                with contextlib.suppress(OSError, MedVLLMError):
                    store.remove(stored.id)
    return list(found.values())
