"""Aliases can be guarded, and rows of the history can be added alone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SQLITE = """
CREATE TRIGGER catalog_history_{event} BEFORE {event} ON catalog_history
BEGIN SELECT RAISE(ABORT, 'the history can only be added to'); END
"""
_POSTGRESQL = """
CREATE FUNCTION catalog_history_is_kept() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'the history can only be added to'; END$$;
CREATE TRIGGER catalog_history_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON catalog_history
FOR EACH STATEMENT EXECUTE FUNCTION catalog_history_is_kept()
"""


def upgrade() -> None:
    op.add_column("catalog_aliases", sa.Column("guarded", sa.Boolean, nullable=False, server_default=sa.false()))
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(_SQLITE.format(event=event))
    else:
        op.execute(_POSTGRESQL)


def downgrade() -> None:
    # Before there were guards, an alias that points nowhere meant nothing.
    op.execute("DELETE FROM catalog_aliases WHERE number IS NULL")
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(f"DROP TRIGGER catalog_history_{event}")
    else:
        op.execute("DROP TRIGGER catalog_history_kept ON catalog_history")
        op.execute("DROP FUNCTION catalog_history_is_kept()")
    op.drop_column("catalog_aliases", "guarded")
