"""The tables as this program knows them; the migrations make them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

MAX_NUMBER = 2**31 - 1  # of an INTEGER

metadata = MetaData()
# Compared and sorted by code point on both databases, as Python does; PostgreSQL would follow the server's language.
NAME = Text().with_variant(Text(collation="C"), "postgresql")

# One row: the number that changes with the catalogue, and where the history ends.
head = Table(
    "catalog_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)
names = Table(
    "catalog_names",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("newest", Integer, nullable=False),  # the newest version ever given: never given again
    Column("current", Integer),  # the version that the bare name means; none is left: NULL
)
versions = Table(
    "catalog_versions",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("model_type", Text, nullable=False),
    Column("facts", Text, nullable=False),  # JSON in ASCII
    Column("sha256", Text, nullable=False),  # of the facts
    ForeignKeyConstraint(["name"], ["catalog_names.name"]),
)
other_names = Table(
    "catalog_other_names",
    metadata,
    Column("other", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    ForeignKeyConstraint(["name", "number"], ["catalog_versions.name", "catalog_versions.number"], ondelete="CASCADE"),
)
aliases = Table(
    "catalog_aliases",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("alias", NAME, primary_key=True),
    Column("number", Integer),  # NULL: protected before it was set
    Column("guarded", Boolean, key="protected", nullable=False),
    ForeignKeyConstraint(["name"], ["catalog_names.name"]),
    ForeignKeyConstraint(["name", "number"], ["catalog_versions.name", "catalog_versions.number"]),
)
history = Table(
    "catalog_history",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),  # UTC, ISO 8601
    Column("name", NAME),
    Column("record", Text, nullable=False),  # JSON in ASCII: all of the event
    Column("hash", Text, nullable=False),  # SHA-256 of the hash before and the record
    Index("catalog_history_by_name", "name", "seq"),
    Index("catalog_history_by_time", "at"),
)
# What processes hold. It stays empty in a SQLite file: there they note it in files beside it.
processes = Table(
    "catalog_processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seen", DateTime(timezone=True), nullable=False),
    Column("note", Text, nullable=False),
)
