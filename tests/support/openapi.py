"""The OpenAPI document of a server, as a client that is made from it reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Operation:
    """A method of a path, with what it documents."""

    document: dict[str, Any]
    method: str
    path: str

    @property
    def content(self) -> dict[str, Any]:
        return self.document["paths"][self.path][self.method]

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def example_path(self) -> str:
        """The path with the examples of its parameters."""
        found = self.path
        for parameter in self.content.get("parameters", ()):
            if parameter["in"] == "path":
                found = found.replace(f"{{{parameter['name']}}}", quote(self.example_in(parameter)))
        return found

    def example_query(self) -> dict[str, Any]:
        """The parameters of the query that have an example."""
        stated = [each for each in self.content.get("parameters", ()) if each["in"] == "query"]
        return {each["name"]: example for each in stated if (example := self.example_in(each)) is not None}

    def body_examples(self) -> list[Any]:
        """The examples of the body; none if it has no body, or no example."""
        if "requestBody" not in self.content:
            return []
        described = self.content["requestBody"]["content"]["application/json"]
        return [described["example"]] if "example" in described else list(self._examples_of(described["schema"]))

    def answer(self, status: int) -> dict[str, Any]:
        """What is documented of the answers with a status."""
        return self.resolve(self.content["responses"][str(status)])

    def schema(self, status: int, kind: str = "application/json") -> dict[str, Any]:
        """The JSON schema of the answers with a status, with all that it refers to."""
        return self.answer(status)["content"][kind]["schema"] | {"components": self.document["components"]}

    def example_in(self, parameter: dict[str, Any]) -> Any:
        examples = parameter["schema"].get("examples") or [parameter.get("example")]
        return examples[0]

    def resolve(self, described: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in described:
            return described
        found = self.document
        for part in described["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return found

    def _examples_of(self, schema: dict[str, Any]) -> Iterator[Any]:
        schema = self.resolve(schema)
        if "example" in schema:
            yield schema["example"]
        for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            yield from self._examples_of(choice)


def operations_of(document: dict[str, Any]) -> list[Operation]:
    """All operations of a document."""
    return [Operation(document, method, path) for path, methods in document["paths"].items() for method in methods]


def examples_in(described: dict[str, Any]) -> list[Any]:
    """The examples of a documented content."""
    return [described["example"]] if "example" in described else [e["value"] for e in described["examples"].values()]
