"""The stored catalogue in SQL: SQLite or PostgreSQL, by SQLAlchemy. Imported once there is a database to open."""

from medvllm.catalog.sql.processes import Processes
from medvllm.catalog.sql.store import SqlStore

__all__ = ["Processes", "SqlStore"]
