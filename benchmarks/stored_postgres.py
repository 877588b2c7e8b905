"""Filters over 100,000 entries in PostgreSQL, and look-ups by many, beside hand-written SQL on the same server."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import catalogue_rates
from benchmarks.measure import Table, beside, duration, interleaved, timed
from benchmarks.stored import COUNT, CURRENT, GLOB, PAGE, build_entries
from medvllm.catalog import Catalog, StoredCatalog
from medvllm.engine.model_runner import ModelRegistry

if TYPE_CHECKING:
    import psycopg

_LISTED = f'SELECT v.name, v.facts FROM {CURRENT} WHERE %s ORDER BY v.name COLLATE "C"'
# Our call, its filters, what the peer is called, and its condition.
_FILTERS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    (f'`list_models(match="{GLOB}")`', {"match": GLOB}, "glob", "v.name LIKE '%model-0999%'"),
    (
        '`list_models(tags=["en", "ward-7"])`',
        {"tags": ["en", "ward-7"]},
        "tags",
        """v.facts::jsonb -> 'tags' @> '["en", "ward-7"]'""",
    ),
    (
        '`list_models(license="mit", match="hospital-1[34]/*")`',
        {"license": "mit", "match": "hospital-1[34]/*"},
        "licence and glob",
        "v.facts::json ->> 'license' = 'mit' AND v.name ~ '^hospital-1[34]/'",
    ),
    (f"`list_models(limit={PAGE})`", {"limit": PAGE}, "first page", "true"),
)


def tables(quick: bool) -> list[Table]:
    """Measure listings with a filter, a page, and look-ups at the same time. Nothing without PostgreSQL."""
    import psycopg

    from medvllm.catalog.sql import SqlStore
    from tests.support.postgres import Postgres, programs

    found = programs()
    if found is None:
        return []
    with Postgres(found) as server, server.database() as url:
        StoredCatalog(url).migrate()
        build_entries(SqlStore(url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE")
            registry = ModelRegistry(Catalog(StoredCatalog(url)))
            steps, peers = {}, {}
            for call, filters, peer, condition in _FILTERS:
                query = _LISTED % condition + (f" LIMIT {PAGE}" if "limit" in filters else "")
                peers[call] = peer = f"psycopg: {peer}"
                steps[call] = partial(timed, partial(registry.list_models, **filters))
                steps[peer] = partial(timed, partial(_read, connection, query))
            series = interleaved(steps, 1 if quick else 5)
        rates = catalogue_rates.tables_of(url, quick)
    reading = (
        "The server runs on the same machine, with its files in memory. The peer parses the facts; it makes no "
        "entries, and checks no digests."
    )
    listing = Table(f"Listing some of {COUNT:,} entries stored in PostgreSQL", beside(series, peers), reading, duration)
    return [listing, *rates]


def _read(connection: "psycopg.Connection[Any]", query: str) -> dict[str, Any]:
    return {name: json.loads(facts) for name, facts in connection.execute(query.encode())}
