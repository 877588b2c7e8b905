"""A client of `medvllm serve`: the tasks of `ModelRunner`, computed by a server.

Example:
    ```python
    from medvllm.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for span in client.entities("my-tagger", ["Insulin was given."])[0].spans:
            print(span.start, span.end, span.label)
    ```
"""

from typing import TYPE_CHECKING, Any

from medvllm.client.client import Client

if TYPE_CHECKING:
    from medvllm.client.async_client import AsyncClient

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:  # asyncio takes longer to import than all else
    if name == "AsyncClient":
        from medvllm.client.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
