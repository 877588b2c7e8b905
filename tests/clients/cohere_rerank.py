"""Cohere's clients against a server: what they get, and what they raise. Arguments: two addresses, the second full."""

import asyncio
import json
import sys
from typing import Any

import cohere
from cohere.core.api_error import ApiError

URL, FULL, QUERY, *DOCUMENTS = sys.argv[1:]


def rank(client: Any, model: str = "rank", **options: Any) -> list[tuple[int, float]]:
    answer = client.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=2, **options)
    return [(each.index, each.relevance_score) for each in answer.results]


def fail(client: Any, model: str, **options: Any) -> list[Any] | None:
    try:
        rank(client, model, **options)
    except ApiError as error:
        return [type(error).__name__, error.status_code, error.body]
    return None


once: dict[str, Any] = {"request_options": {"max_retries": 0}}
old, new = cohere.Client("key", base_url=URL), cohere.ClientV2("key", base_url=URL)


async def rank_async() -> list[tuple[int, float]]:
    answer = await cohere.AsyncClientV2("key", base_url=URL).rerank(
        model="rank", query=QUERY, documents=DOCUMENTS, top_n=2
    )
    return [(each.index, each.relevance_score) for each in answer.results]


texts = old.rerank(model="rank", query=QUERY, documents=DOCUMENTS, top_n=1, return_documents=True).results
found = {
    "v1": rank(old),
    "v2": rank(new),
    "async": asyncio.run(rank_async()),
    "text": texts[0].document.text,
    "wrong": fail(new, "nix"),
    "final": fail(new, "cls"),
    "full": fail(cohere.ClientV2("key", base_url=FULL), "rank", **once),
}
print(json.dumps(found))
