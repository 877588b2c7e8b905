"""The API keys in the database of a stored catalogue."""

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medvllm.api_keys import RIGHTS, ApiKey, Right, digest_of, new_key
from medvllm.author import now, who
from medvllm.catalog.stores import DatabaseHandle
from medvllm.errors import CatalogError, RequestError
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from datetime import datetime

_MAX_NAME = 100  # characters


class StoredKeys:
    """The keys that the servers of a catalogue accept. Each method raises CatalogError if the database cannot be used.

    Args:
        database: The database.
    """

    def __init__(self, database: DatabaseHandle) -> None:
        self._database = database

    def list(self) -> list[ApiKey]:
        """Return all keys by their names, also those that are revoked or have expired."""
        from sqlalchemy import select

        from medvllm.catalog.sql.tables import keys

        store = self._database.reader()
        if store is None:
            return []
        with store.database.reading() as connection:
            return [_to_key(row) for row in connection.execute(select(keys).order_by(keys.c.name))]

    def add(
        self,
        name: str,
        *,
        rights: tuple[Right, ...],
        limits: Mapping[str, int] | None = None,
        expires: "datetime | None" = None,
    ) -> str:
        """Make a key, store its digest, and return the key. It cannot be read later.

        Raises:
            RequestError: The name cannot be used, or is taken.
        """
        from sqlalchemy import insert, select

        from medvllm.catalog.sql.tables import keys

        if not name.strip() or not name.isprintable() or len(name) > _MAX_NAME:
            raise RequestError(
                f"The name of a key needs 1 to {_MAX_NAME} visible characters.\n"
                "Name the program that will use it: medvllm key add radiology-pacs",
                option="name",
            )
        key = new_key()
        row: dict[str, Any] = {
            "name": name,
            "digest": digest_of(key),
            "rights": " ".join(rights),
            "limits": json.dumps(limits or {}),
        }
        row |= {"created": now(), "author": who()}
        row |= {"expires": expires and expires.isoformat(timespec="seconds")}
        with self._database.writer().database.writing() as connection:
            if connection.execute(select(keys.c.name).where(keys.c.name == name)).first():
                raise RequestError(
                    f"There is a key {name!r} already, or was. Its name is not given again.\n"
                    f"Use another name: medvllm key add {shlex.quote(f'{name}-2')}",
                    option="name",
                    value=name,
                )
            connection.execute(insert(keys).values(row))
        return key

    def revoke(self, name: str) -> None:
        """Refuse a key from now on.

        Raises:
            CatalogError: There is no such key, or it is revoked already.
        """
        from sqlalchemy import update

        from medvllm.catalog.sql.tables import keys

        known = {key.name: key for key in self.list()}
        if name not in known or known[name].revoked:
            what = f"Key {name!r} is revoked already" if name in known else f"There is no key {name!r}"
            near = did_you_mean(near_names(name, [key for key in known if not known[key].revoked]))
            raise CatalogError(f"{what}.{near}\nList the keys: medvllm key list")
        with self._database.writer().database.writing() as connection:
            connection.execute(update(keys).where(keys.c.name == name).values(revoked=now()))


def _to_key(row: Any) -> ApiKey:
    return ApiKey(
        row.name,
        row.digest,
        tuple(right for right in RIGHTS if right in row.rights.split()),
        json.loads(row.limits),
        row.created,
        row.author,
        row.expires,
        row.revoked,
    )
