"""Pivotal Tuning Inversion for whole data sets: the method, its engine and its tables.

Nothing in this package knows about Prefect; `tasks` and `flows` build on it, never the other way.
"""

__version__ = "0.1.0"
