"""The task of a model's head, found by the name of its class. For example, BertForTokenClassification does "ner"."""

import re

_TASKS = {
    "MaskedLM": "fill-mask",
    "TokenClassification": "ner",
    "SequenceClassification": "classify",
    "CausalLM": "generate",
    "ConditionalGeneration": "generate",
    "PreTraining": "embed",
}


def task_of_class(class_name: str) -> str | None:
    """Return the task for the name of a class, or None for an encoder without a head."""
    if class_name.endswith("LMHeadModel"):
        return "generate"
    head = re.search(r"For([A-Z]\w*)$", class_name)
    if head is None:
        return None
    return _TASKS.get(head[1], re.sub(r"(?<!^)(?=[A-Z])", "-", head[1]).lower())
