"""What the head of a model was trained for, told by the name of its class."""

import re

_TASKS = {
    "MaskedLM": "fill-mask",
    "TokenClassification": "ner",
    "SequenceClassification": "classify",
    "CausalLM": "generate",
    "ConditionalGeneration": "generate",
    "PreTraining": "embed",
}


def task_of(class_name: str) -> str | None:
    """Return the task that a class's head was made for; None for an encoder alone."""
    if class_name.endswith("LMHeadModel"):
        return "generate"
    head = re.search(r"For([A-Z]\w*)$", class_name)
    if head is None:
        return None
    return _TASKS.get(head[1], re.sub(r"(?<!^)(?=[A-Z])", "-", head[1]).lower())
