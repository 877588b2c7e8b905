"""Names, versions, aliases and history."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    head = op.create_table(
        "catalog_head",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "revision": 1, "length": 0, "hash": "0" * 64}])
    op.create_table(
        "catalog_names",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("newest", sa.Integer, nullable=False),
        sa.Column("current", sa.Integer),
    )
    op.create_table(
        "catalog_versions",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model_type", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["name"], ["catalog_names.name"]),
    )
    op.create_table(
        "catalog_other_names",
        sa.Column("other", _NAME, primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.ForeignKeyConstraint(
            ["name", "number"], ["catalog_versions.name", "catalog_versions.number"], ondelete="CASCADE"
        ),
    )
    op.create_table(
        "catalog_aliases",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("alias", _NAME, primary_key=True),
        sa.Column("number", sa.Integer),
        sa.ForeignKeyConstraint(["name"], ["catalog_names.name"]),
        sa.ForeignKeyConstraint(["name", "number"], ["catalog_versions.name", "catalog_versions.number"]),
    )
    op.create_table(
        "catalog_history",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("name", _NAME),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    op.create_index("catalog_history_by_name", "catalog_history", ["name", "seq"])
    op.create_index("catalog_history_by_time", "catalog_history", ["at"])


def downgrade() -> None:
    for table in ("history", "aliases", "other_names", "versions", "names", "head"):
        op.drop_table(f"catalog_{table}")
