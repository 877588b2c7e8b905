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
# The heads that PEFT names in the config of an adapter.
_ADAPTED = {
    "TOKEN_CLS": "TokenClassification",
    "SEQ_CLS": "SequenceClassification",
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "ConditionalGeneration",
    "QUESTION_ANS": "QuestionAnswering",
}


def task_of_adapter(task_type: object) -> str | None:
    """Return the task for the `task_type` of an adapter's config; None if it names none."""
    if task_type == "FEATURE_EXTRACTION":
        return "embed"
    head = _ADAPTED.get(task_type) if isinstance(task_type, str) else None
    return None if head is None else task_of_class(f"For{head}")


def is_same_head(task: str | None, other: str | None) -> bool:
    """Return whether two tasks are done by one kind of head, such as "ner" and "deid"."""
    kinds = {"deid": "ner", "rerank": "classify", "assertions": "classify"}
    return task is not None and other is not None and kinds.get(task, task) == kinds.get(other, other)


def task_of_class(class_name: str) -> str | None:
    """Return the task for the name of a class, or None for an encoder without a head."""
    if class_name.endswith("LMHeadModel"):
        return "generate"
    head = re.search(r"For([A-Z]\w*)$", class_name)
    if head is None:
        return None
    return _TASKS.get(head[1], re.sub(r"(?<!^)(?=[A-Z])", "-", head[1]).lower())
