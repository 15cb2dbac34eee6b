"""Lets a database count what is removed from Dagster's event log, or altered there, by whomever: by triggers.

What is added is found by its id. What is gone is not, so whoever keeps something in memory compares these
counts, and begins anew where they differ.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from clipfarm_dagster.instance.partition_account import Horizon

_TOKEN_CHARACTERS = 16

_SQLITE_THERE = """
    SELECT count(*) FROM sqlite_master WHERE name IN ('clipfarm_changes', 'clipfarm_events_deleted',
        'clipfarm_events_altered', 'clipfarm_keys_deleted')"""
_SQLITE_OBJECTS = 4
_SQLITE_LOOK = "SELECT token, events, keys FROM clipfarm_changes"
_SQLITE_BEGIN = (
    """CREATE TABLE IF NOT EXISTS clipfarm_changes
        (token TEXT NOT NULL, events INTEGER NOT NULL, keys INTEGER NOT NULL)""",
    """CREATE TRIGGER IF NOT EXISTS clipfarm_events_deleted AFTER DELETE ON event_logs
        BEGIN UPDATE clipfarm_changes SET events = events + 1; END""",
    """CREATE TRIGGER IF NOT EXISTS clipfarm_events_altered
        AFTER UPDATE OF id, asset_key, dagster_event_type, partition, run_id, timestamp ON event_logs
        BEGIN UPDATE clipfarm_changes SET events = events + 1; END""",
    """CREATE TRIGGER IF NOT EXISTS clipfarm_keys_deleted AFTER DELETE ON dynamic_partitions
        BEGIN UPDATE clipfarm_changes SET keys = keys + 1; END""",
    "DELETE FROM clipfarm_changes",
)
_SQLITE_COUNT = "INSERT INTO clipfarm_changes VALUES (?, 0, 0)"

_POSTGRES_THERE = """
    SELECT count(*) FROM pg_trigger WHERE tgname = 'clipfarm_changes' AND tgenabled <> 'D'
        AND tgrelid IN (to_regclass('event_logs'), to_regclass('dynamic_partitions'))
        AND to_regclass('clipfarm_changes') IS NOT NULL"""
_POSTGRES_OBJECTS = 2
_POSTGRES_LOOK = """
    SELECT token, events, keys, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM clipfarm_changes"""
_POSTGRES_BEGIN = """
    BEGIN;
    SET LOCAL lock_timeout = '2s';
    SELECT pg_advisory_xact_lock(hashtext('clipfarm_changes'));
    CREATE TABLE IF NOT EXISTS clipfarm_changes
        (token text NOT NULL, events bigint NOT NULL, keys bigint NOT NULL);
    DELETE FROM clipfarm_changes;
    INSERT INTO clipfarm_changes VALUES (%(token)s, 0, 0);
    CREATE OR REPLACE FUNCTION clipfarm_count_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_TABLE_NAME = 'event_logs' THEN UPDATE clipfarm_changes SET events = events + 1;
        ELSE UPDATE clipfarm_changes SET keys = keys + 1; END IF;
        RETURN NULL;
    END $$;
    DROP TRIGGER IF EXISTS clipfarm_changes ON event_logs;
    CREATE TRIGGER clipfarm_changes AFTER DELETE OR TRUNCATE
        OR UPDATE OF id, asset_key, dagster_event_type, partition, run_id, timestamp ON event_logs
        FOR EACH STATEMENT EXECUTE FUNCTION clipfarm_count_change();
    DROP TRIGGER IF EXISTS clipfarm_changes ON dynamic_partitions;
    CREATE TRIGGER clipfarm_changes AFTER DELETE OR TRUNCATE OR UPDATE ON dynamic_partitions
        FOR EACH STATEMENT EXECUTE FUNCTION clipfarm_count_change();
    CREATE STATISTICS IF NOT EXISTS clipfarm_event_kinds (mcv, dependencies, ndistinct)
        ON asset_key, dagster_event_type FROM event_logs;
    ANALYZE event_logs;
    COMMIT"""
"""The statistics tell PostgreSQL that an asset has events of some types only: else it goes backwards through
all events for the latest one of a type that an asset does not have. New writers wait behind a change of the
table that waits for those that are there, so it gives up soon."""


@dataclass(frozen=True)
class Changes:
    """What a database has counted."""

    token: str
    """Random, of the database; another one where the counting began anew."""
    events: int
    keys: int


class NotCountedError(Exception):
    """The database cannot be made to count now: its user may not create a trigger, a writer does not end, or
    it is too old."""


def counted(connection: Connection) -> tuple[Changes, Horizon | None]:
    """What has been counted so far, and for PostgreSQL which transactions have ended. Lets the database count
    from now on if it does not yet, or if a migration has made a table anew and so removed its trigger.

    Raises:
        NotCountedError: it cannot be made to.
    """
    in_sqlite = connection.dialect.name == "sqlite"
    try:
        look = _look_in_sqlite if in_sqlite else _look_in_postgres
        found = look(connection)
        if found is None:
            begin = _begin_in_sqlite if in_sqlite else _begin_in_postgres
            begin(connection, secrets.token_hex(_TOKEN_CHARACTERS // 2))
            found = look(connection)
    except DBAPIError as error:
        raise NotCountedError(str(error.orig).strip()) from error
    if found is None:
        raise NotCountedError("what was to count is not there")
    return found


def _look_in_sqlite(connection: Connection) -> tuple[Changes, None] | None:
    if connection.exec_driver_sql(_SQLITE_THERE).scalar_one() != _SQLITE_OBJECTS:
        return None
    row = connection.exec_driver_sql(_SQLITE_LOOK).one_or_none()
    return None if row is None else (Changes(*row), None)


def _begin_in_sqlite(connection: Connection, token: str) -> None:
    for statement in _SQLITE_BEGIN:
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(_SQLITE_COUNT, (token,))


def _look_in_postgres(connection: Connection) -> tuple[Changes, Horizon] | None:
    if connection.exec_driver_sql(_POSTGRES_THERE).scalar_one() != _POSTGRES_OBJECTS:
        return None
    row = connection.exec_driver_sql(_POSTGRES_LOOK).one_or_none()
    return None if row is None else (Changes(*row[:3]), Horizon(*row[3:]))


def _begin_in_postgres(connection: Connection, token: str) -> None:
    try:
        connection.exec_driver_sql(_POSTGRES_BEGIN, {"token": token})
    except DBAPIError:
        connection.exec_driver_sql("ROLLBACK")  # of what was begun in the text of the statement
        raise
