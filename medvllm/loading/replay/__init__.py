"""Replay: a later load of a model rebuilds what the first one made, from a template and the mapped weight files.

It takes milliseconds and copies no byte. The first load reads its weights through `Checkpoint`; `make_template`
describes the result; `templates` keeps the templates of this process.
"""

from medvllm.loading.replay.checkpoint import Checkpoint
from medvllm.loading.replay.store import source_facts, templates
from medvllm.loading.replay.template import NoTemplate, Template, make_template

__all__ = ["Checkpoint", "NoTemplate", "Template", "make_template", "source_facts", "templates"]
