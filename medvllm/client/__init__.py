"""A client of `medvllm serve`: the tasks of `ModelRunner`, computed by a server.

Example:
    ```python
    from medvllm.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for span in client.entities("my-tagger", ["Insulin was given."])[0].spans:
            print(span.start, span.end, span.label)
    ```
"""

from medvllm.client.async_client import AsyncClient
from medvllm.client.client import Client

__all__ = ["AsyncClient", "Client"]
