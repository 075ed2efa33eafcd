"""PostgreSQL: errors, incidents, recoveries, directives, commands."""

from upright.adapters.store.database import Database
from upright.adapters.store.errors import ErrorState
from upright.adapters.store.migrate import upgrade
from upright.adapters.store.store import PostgresStore

__all__ = ["Database", "ErrorState", "PostgresStore", "upgrade"]
