"""What an adapter's entry does not say, and the entry of its base does."""

from medvllm.heads import is_same_head, task_of_adapter
from medvllm.loading.adapters.declaration import task_type
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot

_ENCODER = ("architecture", "max_length", "long_input")
_TOKENIZER = ("do_lower_case", "strip_accents")
_VECTORS = (
    *("pooling", "normalize", "truncate_dim", "prompts", "default_prompt_name", "include_prompt", "role"),
    *("counterpart", "inputs"),
)
_HEAD = ("task", "aggregation", "word_pattern", "activation", "entity_markers", "inputs")
_LABELS = ("label_scheme", "outside_label")


def inherit_facts(
    metadata: ModelMetadata, snapshot: Snapshot, base: ModelMetadata, *, has_same_head: bool
) -> ModelMetadata:
    """Return an adapter's entry, completed with the facts of its base that hold for the adapter too.

    The casing is the base's unless the adapter has a tokenizer of its own. How vectors are made is the base's if the
    adapter embeds. The task and how labels are read are the base's if both have the same head: that a base finds all
    that identifies someone says nothing of an adapter with other labels.

    Args:
        metadata: The adapter's entry.
        snapshot: The adapter's files.
        base: The entry of its base, completed with what its files say, also its task.
        has_same_head: Whether both have the same kind of head, with the same labels.
    """
    trained = task_of_adapter(task_type(snapshot))
    task = metadata.behaviour.task or trained or base.behaviour.task
    inherited = [*_ENCODER, *(() if snapshot.has_tokenizer else _TOKENIZER)]
    if task == "embed" or (trained is None and is_same_head(task, base.behaviour.task)):
        inherited += _VECTORS
    if has_same_head and is_same_head(task, base.behaviour.task):
        inherited += (*_HEAD, *(_LABELS if metadata.behaviour.id2label is None else ()))
    own, others = metadata.behaviour, base.behaviour
    missing = {fact: getattr(others, fact) for fact in inherited if getattr(own, fact) in (None, ())}
    return metadata.with_facts(**{"task": task, **missing})
