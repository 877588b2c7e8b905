"""The tables of this program's schema. The migrations create them."""

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

metadata = MetaData()
# Both databases compare and sort names by code point, as Python does. PostgreSQL would use the server's language.
NAME = Text().with_variant(Text(collation="C"), "postgresql")

# One row: a number that grows with every change of the catalogue, and where the history ends.
head = Table(
    "catalog_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, key="change_number", nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)
names = Table(
    "catalog_names",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("newest", Integer, nullable=False),  # the highest version ever given; no number is given twice
    Column("current", Integer),  # the version that the bare name means; NULL without versions
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
    Column("number", Integer),  # NULL: the alias is protected but not set
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
    Column("record", Text, nullable=False),  # the whole event, as JSON in ASCII
    Column("hash", Text, nullable=False),  # SHA-256 of the hash before and the record
    Index("catalog_history_by_name", "name", "seq"),
    Index("catalog_history_by_time", "at"),
)
# Records of the processes that hold models. With SQLite they are files beside the database, and this table is empty.
processes = Table(
    "catalog_processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seen", DateTime(timezone=True), nullable=False),
    Column("note", Text, nullable=False),
)
# API keys of servers. A revoked key stays, so that the name of a key always means the same one.
keys = Table(
    "catalog_keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("rights", Text, nullable=False),  # words with a blank between them
    Column("limits", Text, nullable=False),  # JSON
    Column("created", Text, nullable=False),  # UTC, ISO 8601, as the next ones
    Column("author", Text, nullable=False),
    Column("expires", Text),
    Column("revoked", Text),
)
