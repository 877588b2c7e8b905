"""Which right a request needs."""

import re

from medvllm.api_keys import Right

# They answer orchestrators, which have no keys, and say nothing of the models.
OPEN = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v1/identity")
# POST that only reads.
_READ = re.compile(r"/v2/repository/index|/api/show|/presidio/(?:recognizers|supportedentities)")
_MANAGE = re.compile(r".*/(?:load|unload|pin|unpin)")


def right_of(method: str, path: str) -> Right:
    """Return the right that a request needs. What is not known to need less needs "manage"."""
    if method in ("GET", "HEAD"):
        return "read"
    if method != "POST" or _MANAGE.fullmatch(path):
        return "manage"
    return "read" if _READ.fullmatch(path) else "infer"
