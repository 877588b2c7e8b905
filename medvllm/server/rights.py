"""Which right a request needs."""

import re

from medvllm.api_keys import Right

# They answer orchestrators, which have no keys, and say nothing of the models.
OPEN = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v1/identity")
# POST that only reads, and POST with texts. What is new needs "manage" until somebody decides.
_READ = re.compile(r"/v1/identity|/v2/repository/index|/api/show")
_INFER = re.compile(
    r"/v1/(?:embeddings|completions|chat/completions|run|entities|redact|classify|assertions|fill-mask|rerank|score)"
    r"|/v2/(?:rerank|models/.+/infer)|/api/embed|/(?:rerank|embed|predict|similarity|classify|score|try)"
    r"|/presidio/(?:analyze|anonymize)|/models/.+",
    re.DOTALL,
)


def right_of(method: str, path: str) -> Right:
    """Return the right that a request needs. What is not known to need less needs "manage"."""
    path = path.rstrip("/")  # with a slash, there is no such route: to be told so needs no more than the route itself
    if method in ("GET", "HEAD"):
        return "infer" if path == "/presidio/supportedentities" else "read"  # it loads the model
    if method == "POST" and _READ.fullmatch(path):
        return "read"
    return "infer" if method == "POST" and _INFER.fullmatch(path) else "manage"
