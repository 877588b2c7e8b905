"""Which processes hold which models.

Each process that holds models keeps a record beside its catalogue, so that everyone who shares the catalogue sees it.
"""

from medvllm.processes.listing import list_processes
from medvllm.processes.publisher import ModelHolder, Publisher, publisher
from medvllm.processes.record import ProcessRecord
from medvllm.processes.record_folder import RecordFolder
from medvllm.processes.record_store import RecordStore, StoredRecord

__all__ = [
    "ModelHolder",
    "ProcessRecord",
    "Publisher",
    "RecordFolder",
    "RecordStore",
    "StoredRecord",
    "list_processes",
    "publisher",
]
