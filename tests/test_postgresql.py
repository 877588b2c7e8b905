"""What a PostgreSQL server, what stands before it, and its URL do to the stored catalogue."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

import psycopg
import pytest

from medvllm.catalog import stores
from medvllm.catalog.address import Address
from medvllm.catalog.sql.postgresql import is_lost
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError, MedVLLMError, SettingError
from medvllm.settings import without_password
from tests.support import bouncer
from tests.support.children import together
from tests.support.postgres import Postgres
from tests.support.sql import change

pytestmark = pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)


@pytest.fixture
def pooled(catalog_url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[bouncer.PgBouncer]:
    """A PgBouncer, through which the catalogue is reached."""
    found = bouncer.program()
    if found is None:
        pytest.skip("there is no PgBouncer on this machine; install it as root: make system")
    with bouncer.PgBouncer(found, postgres) as pooler:
        monkeypatch.setenv("MEDVLLM_CATALOG", pooler.url(catalog_url))
        yield pooler
        stores.close_all()


def _end_connections(url: str) -> None:
    """End every connection to a database, as an idle timeout or a load balancer does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_connection_that_was_ended_while_idle_is_made_anew_at_once(
    catalog_url: str, registry: ModelRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of another process is seen by the next look-up; nothing is logged, and changes are made."""
    registry.register("m", "generic", description="a", persist=True)
    registry.register("m", "generic", description="b", persist=True, replace=True)
    registry.catalog.set_alias("m", "production", 1)
    for number in (2, 1, 2):
        assert registry.get_metadata("m@production").version in (1, 2)
        change(
            catalog_url,
            f"UPDATE catalog_aliases SET number = {number}",
            "UPDATE catalog_head SET revision = revision + 1",
        )
        _end_connections(catalog_url)
        assert registry.get_metadata("m@production").version == number
    _end_connections(catalog_url)
    assert registry.catalog.names() == ["m"]
    _end_connections(catalog_url)
    registry.catalog.set_alias("m", "production", 1)
    assert caplog.records == []


WRITES = (
    "from medvllm.engine.model_runner import registry as r\n"
    "for i in range(4):\n"
    "    r.register(f'm{i % 2}', 'generic', description=f'{PROCESS} {i}', persist=True, replace=True)\n"
    "    r.get_metadata(f'm{i % 2}'), r.list_models(match='m*'), r.catalog.check_history(), r.catalog.history()\n"
    "    r.catalog.set_alias(f'm{i % 2}', f'of-{PROCESS}', r.get_metadata(f'm{i % 2}').version)\n"
    "    r.catalog.plan(r.catalog.export())\n"
)


def test_a_pooler_gives_each_transaction_another_connection(pooled: bouncer.PgBouncer, registry: ModelRegistry) -> None:
    """Four processes and four threads of one, through two connections: no error, and nothing is lost."""
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for k in range(4):
                registry.register("t", "generic", description=f"{i} {k}", persist=True, replace=True)
                registry.get_metadata("t"), list(registry.list_models()), registry.catalog.export()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for status, _, said in together(f"PROCESS = {i}\n{WRITES}" for i in range(4)):
        assert (status, said) == (0, "")
    for thread in threads:
        thread.join()
    assert errors == []
    assert [len(registry.catalog.versions(name)) for name in ("m0", "m1", "t")] == [8, 8, 16]
    assert registry.catalog.check_history()[2] == []


def test_a_pooler_that_starts_anew_is_reached_at_once(
    pooled: bouncer.PgBouncer, catalog_url: str, registry: ModelRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away, what was read last stands; a migration goes through it too."""
    registry.register("m", "generic", description="a", persist=True)
    assert registry.get_metadata("m").description == "a"
    pooled.stop()
    pooled.start()
    registry.register("m", "generic", description="b", persist=True, replace=True)
    assert registry.get_metadata("m").description == "b" and caplog.records == []
    _end_connections(catalog_url)  # between the pooler and the server
    change(catalog_url, "UPDATE catalog_head SET revision = revision + 1")
    with suppress(CatalogError):  # the pooler may give one of the ended connections, once
        registry.get_metadata("m")
    assert registry.get_metadata("m").description == "b"
    pooled.stop()
    assert registry.get_metadata("m").description == "b"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    pooled.start()


REFUSALS = {
    "rights": "REVOKE ALL ON catalog_head FROM reader",
    "table": "ALTER TABLE catalog_head RENAME TO other",
    "column": "ALTER TABLE catalog_head RENAME COLUMN revision TO other",
    "row": "DELETE FROM catalog_head",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_an_answer_that_is_an_error_is_an_error(
    catalog_url: str,
    registry: ModelRegistry,
    monkeypatch: pytest.MonkeyPatch,
    refusal: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not taken for a server that does not answer: what was read before may not hold any more."""
    registry.register("m", "generic", persist=True)
    name = f"reader_{catalog_url.rpartition('_')[2]}"
    change(catalog_url, f"CREATE ROLE {name} LOGIN", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    monkeypatch.setenv("MEDVLLM_CATALOG", catalog_url.replace("medvllm@", f"{name}@"))
    reading = ModelRegistry()
    assert reading.get_metadata("m").version == 1
    change(catalog_url, REFUSALS[refusal].replace("reader", name))
    try:
        with pytest.raises(CatalogError, match="cannot be read: (permission denied|relation|column)|is damaged: it"):
            reading.get_metadata("m")
        assert caplog.records == []
    finally:
        stores.close_all()
        change(catalog_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_slow_and_crossed_statements_are_errors(catalog_url: str, registry: ModelRegistry) -> None:
    """A statement that the server ends for its time, and a change on a server that only reads."""
    registry.register("m", "generic", persist=True)
    database = catalog_url.rpartition("/")[2]
    change(catalog_url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    stores.close_all()
    assert registry.get_metadata("m").version == 1
    with pytest.raises(CatalogError, match="cannot be written: .*read-only transaction"):
        registry.register("n", "generic", persist=True)
    with psycopg.connect(catalog_url, autocommit=True) as theirs:
        theirs.execute("SET default_transaction_read_only = off")
        theirs.execute(f"ALTER DATABASE {database} SET statement_timeout = '100ms'")
        stores.close_all()
        assert registry.get_metadata("m").version == 1
        theirs.execute("BEGIN")
        theirs.execute("LOCK TABLE catalog_head IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CatalogError, match="cannot be read: canceling statement due to statement timeout"):
            registry.get_metadata("m")


def _raised(code: str, url: str) -> psycopg.Error:
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$".encode())
    return caught.value


@pytest.mark.parametrize(
    ("code", "lost"),
    [("08006", True), ("57P01", True), ("57P03", True), ("57P05", True), ("25P03", True)]
    + [(code, False) for code in ("40001", "57014", "53100", "42501", "42P01", "25006", "55P03", "XX000", "26000")],
)
def test_only_the_end_of_a_connection_is_no_answer(catalog_url: str, code: str, lost: bool) -> None:
    """By the server's own code: an administrator's end, a start; not a full disk, a right or a serialization."""
    assert is_lost(_raised(code, catalog_url)) is lost


def test_several_hosts_of_which_one_answers(
    catalog_url: str, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libpq writes them; the one that can be written to is found; IPv6 and parameters too."""
    place, database = catalog_url.removeprefix("postgresql://medvllm@").split("/")
    for url in (
        f"postgresql://medvllm@127.0.0.1:9,{place}/{database}",
        f"postgresql://medvllm@[::1]:9,{place}/{database}?target_session_attrs=read-write&application_name=a%20b",
        f"postgresql://medvllm@/{database}?host=127.0.0.1:9&host={place}",
        f"postgresql://medvllm@{place}/{database}?connect_timeout=3&sslmode=disable&options=-csearch_path%3Dpublic",
        f"postgresql:///?host=127.0.0.1&port={place.partition(':')[2]}&dbname={database}&user=medvllm",
    ):
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        registry.register("m", "generic", description=url, persist=True, replace=True)
        assert registry.get_metadata("m").description == url
        stores.close_all()
    assert len(registry.catalog.versions("m")) == 5


WRONG = [
    ("{}?prepare_threshold=1000000", "has the parameter 'prepare_threshold', which PostgreSQL does not know"),
    ("{}?autocommit=yes", "has the parameter 'autocommit'"),
    ("{}?row_factory=x", "has the parameter 'row_factory'"),
    ("{}?ssl_mode=require", "has the parameter 'ssl_mode', which PostgreSQL does not know .did you mean 'sslmode'.."),
    ("{}?connect_timeout=soon", "cannot be used: bad value for connect_timeout: 'soon'"),
    ("{}?sslmode=maybe", 'cannot be used: invalid sslmode value: "maybe"'),
    ("{}?keepalives=x", "cannot be used: .*invalid integer value"),
    ("{}?target_session_attrs=x", "cannot be used: invalid target_session_attrs value"),
    ("{}?port=1&port=2", "has a port both before and after the question mark"),
    ("postgresql://u@h:port/db", "has an invalid host or port"),
    ("postgresql://u@h:99999/db", "has an invalid host or port"),
    ("postgresql:///db?host=127.0.0.1&port=99999", "cannot be used: invalid port number"),
    ("postgresql://u@[::1/db", "has an invalid host or port"),
    ("postgresql://u@h/%ff", "has bytes that are not UTF-8"),
    ("postgresql:///db?service=nope", "cannot be used: definition of service"),
    ("postgresql://u@h/db?sslmode", "has a parameter without a value"),
]


def test_a_parameter_of_a_wrong_kind_is_an_error_of_the_setting(
    catalog_url: str, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the catalogue is first looked at; and `where` says which it is."""
    for form, words in WRONG:
        monkeypatch.setenv("MEDVLLM_CATALOG", form.format(catalog_url))
        for look in (lambda: registry.get_metadata("m"), registry.catalog.names, registry.catalog.migrate):
            with pytest.raises(SettingError, match=rf"The catalogue's URL \(MEDVLLM_CATALOG\) {words}"):
                look()
        assert registry.catalog.where.startswith("postgresql://")


SECRET = "S3CRET"
SECRETS = [
    "postgresql://m:{}@127.0.0.1:9/db",
    "postgresql://m:x@{}@127.0.0.1:9/db",
    "postgresql://m:{}@x@127.0.0.1:9/db",
    "postgresql://m:a@{}@b@127.0.0.1:9/db",
    "postgresql://m:%40{}%2F@127.0.0.1:9/db",
    "postgresql://:{}@127.0.0.1:9/db",
    "postgresql://127.0.0.1:9/db?user=m&password={}",
    "postgresql://127.0.0.1:9/db?user=m&password=a@{}",
    "postgresql://127.0.0.1:9/db?user=m&pass%77ord={}",
    "postgresql://m@127.0.0.1:9/db?sslmode=require&sslcert=/n&sslkey=/n&sslpassword={}",
    "postgresql://m@127.0.0.1:9/db?sslpassword=a%26{}",
    "postgresql://m:a/{}@127.0.0.1:9/db",
    "postgresql://m:a?{}@127.0.0.1:9/db",
    "postgresql://m:a#{}@127.0.0.1:9/db",
    "postgresql://m:{}@127.0.0.1:9,127.0.0.1:10/db",
    "postgresql://m:{}@127.0.0.1:port/db",
    "postgresql://m@127.0.0.1:9/db?password=a&{}",
    "postgresql://m@127.0.0.1:9/db?oauth_client_secret={}",
    "host=127.0.0.1 port=9 user=m password={}",
    "host=127.0.0.1 password = 'a {}' user=m",
    "mysql://m:{}@127.0.0.1/db",
    "postgres://m:{}@[::1]:9/db",
]


@pytest.mark.parametrize("form", SECRETS)
def test_no_secret_of_a_url_is_shown(
    catalog_url: str, monkeypatch: pytest.MonkeyPatch, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In no error, however it is printed, nor by the catalogue or its settings."""
    url = form.format(SECRET)
    monkeypatch.setenv("MEDVLLM_CATALOG", url)
    registry = ModelRegistry()
    seen = [registry.catalog.where, repr(registry.catalog), without_password(url)]
    for look in (lambda: registry.get_metadata("m"), registry.catalog.names, registry.catalog.migrate):
        with pytest.raises(MedVLLMError) as caught:
            look()
        error: BaseException | None = caught.value
        while error is not None:
            facts: dict[str, Any] = error.__dict__ if isinstance(error, MedVLLMError) else {}
            seen += [str(error), repr(error), str(facts)]
            error = error.__cause__
    with suppress(SettingError):
        seen += [repr(Address.of(url)), Address.of(url).shown]
    assert SECRET not in "\n".join([*seen, caplog.text])
