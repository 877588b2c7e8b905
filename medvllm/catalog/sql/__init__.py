"""The stored catalogue in SQLite or PostgreSQL. Imported only when there is a database to open.

Reading a SQLite file needs Python's own `sqlite3` alone. SQLAlchemy is imported for a server, and for the first change.
"""

from medvllm.catalog.sql.store import SqlStore

__all__ = ["SqlStore"]
