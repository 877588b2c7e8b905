"""The templates of this process. The least recently used ones are dropped when they take too much memory."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from medvllm.forking import Lock
from medvllm.loading.replay.template import NoTemplate, Template
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources.snapshot import Snapshot

SourceFacts = tuple[Any, ...]


def source_facts(metadata: ModelMetadata, snapshot: Snapshot) -> SourceFacts:
    """Return what a model depends on besides its identity: the facts of its entry, and its files by digest."""
    return metadata, snapshot.path, snapshot.files, snapshot.converted


class TemplateStore:
    """Templates by identity. Threads may share it.

    Args:
        max_templates: How many templates it keeps.
        max_bytes: How many bytes they may take.
    """

    def __init__(self, max_templates: int = 1_000, max_bytes: int = 256 << 20) -> None:
        self._max_templates, self._max_bytes = max_templates, max_bytes
        self._lock = Lock()  # guards the two below
        self._templates: OrderedDict[Identity, tuple[SourceFacts, Template]] = OrderedDict()
        self._size_bytes = 0

    def find(self, identity: Identity, facts: SourceFacts) -> Template | None:
        """Return the template of an identity, or None. One that was made of other facts is dropped."""
        with self._lock:
            kept = self._templates.get(identity)
            if kept is not None and kept[0] == facts:
                self._templates.move_to_end(identity)
                return kept[1]
            self._drop(identity)
        return None

    def store(self, identity: Identity, facts: SourceFacts, template: Template | NoTemplate) -> None:
        """Store a template in place of the identity's old one. A `NoTemplate` only drops the old one."""
        with self._lock:
            self._drop(identity)
            if isinstance(template, NoTemplate):
                return
            self._templates[identity] = facts, template
            self._size_bytes += template.size_bytes
            while len(self._templates) > self._max_templates or self._size_bytes > self._max_bytes:
                self._drop(next(iter(self._templates)))

    def clear(self) -> None:
        """Drop all templates: the next load of each model goes through transformers."""
        with self._lock:
            self._templates.clear()
            self._size_bytes = 0

    def _drop(self, identity: Identity) -> None:
        if (kept := self._templates.pop(identity, None)) is not None:
            self._size_bytes -= kept[1].size_bytes

    def __iter__(self) -> Iterator[Template]:
        """Iterate over the templates, the least recently used first."""
        with self._lock:
            return iter([template for _, template in self._templates.values()])

    def __len__(self) -> int:
        with self._lock:
            return len(self._templates)


templates = TemplateStore()
