"""What a visitor has tried, as a call of `medvllm.client`."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class ClientCall(NamedTuple):
    """A call of a method of `Client`.

    Attributes:
        method: The method.
        arguments: What follows the name of the model.
        options: Its keywords.
        shown: The lines that print what it returns, `found`.
    """

    method: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    shown: str

    def as_python(self, url: str, model: str) -> str:
        """Return the lines for Python: the client reads the key from MEDVLLM_API_KEY itself."""
        given = [model, *self.arguments]
        words = [repr(each) for each in given] + [f"{name}={value!r}" for name, value in self.options.items()]
        listed = "".join(f"        {word},\n" for word in words)
        shown = self.shown.replace("\n", "\n    ")
        return (
            "from medvllm.client import Client\n\n"
            f"with Client({url!r}) as client:\n    found = client.{self.method}(\n{listed}    )\n    {shown}"
        )


def entities_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/entities`."""
    shown = "for span in found[0].spans:\n    print(span.start, span.end, span.label, span.score, span.text)"
    return ClientCall("entities", ([body["input"]],), {"threshold": body["threshold"]}, shown)


def redact_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/redact`."""
    options = {"operators": body["operators"], "threshold": body["threshold"]}
    return ClientCall("redact", ([body["input"]],), options, "print(found[0].text)")


def classify_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/classify`."""
    texts = [body["input"]] if isinstance(body["input"], str) else [tuple(pair) for pair in body["input"]]
    return ClientCall("classify", (texts,), {}, "for label in found[0]:\n    print(label.label, label.score)")


def assertions_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/assertions`."""
    [item] = body["input"]
    spans = [(span["start"], span["end"]) for span in item["spans"]]
    shown = "for judged in found[0]:\n    print(judged.start, judged.end, judged.label, judged.score)"
    return ClientCall("assertions", ([item["text"]], [spans]), {}, shown)


def fill_mask_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/fill-mask`."""
    shown = "for gap in found[0]:\n    print([(fill.text, fill.score) for fill in gap])"
    return ClientCall("fill_mask", ([body["input"]],), {"top_k": body["top_k"]}, shown)


def rerank_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/rerank`."""
    shown = "for each in found:\n    print(each.index, each.score)"
    return ClientCall("rerank", (body["query"], body["documents"]), {}, shown)


def embed_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/embeddings`."""
    return ClientCall("embed", (body["input"],), {}, "print(found.vectors)")


def chat_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/chat/completions`."""
    return _generate_call(body["messages"], body)


def completion_call(body: Mapping[str, Any]) -> ClientCall:
    """Return the call for a body of `/v1/completions`."""
    return _generate_call(body["prompt"], body)


def _generate_call(prompt: Any, body: Mapping[str, Any]) -> ClientCall:
    options = {"stream": True, "max_new_tokens": body["max_tokens"]}
    return ClientCall("generate", ([prompt],), options, 'for piece in found:\n    print(piece, end="", flush=True)')
