"""The stored catalogue in SQLite or PostgreSQL, through SQLAlchemy. Imported only when there is a database to open."""

from medvllm.catalog.sql.processes import Processes
from medvllm.catalog.sql.store import SqlStore

__all__ = ["Processes", "SqlStore"]
