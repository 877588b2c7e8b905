"""Run by alembic: migrate on the connection, and in the transaction, that the caller has begun."""

from alembic import context

from medvllm.catalog.sql.schema import VERSION_TABLE
from medvllm.catalog.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
