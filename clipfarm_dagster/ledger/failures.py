"""What a ledger says of its database's errors."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from clipfarm_dagster.errors import ClipFarmError, LedgerConnectionError, LedgerError
from clipfarm_dagster.ledger.postgres import Restarts, hint, is_lost
from clipfarm_dagster.stages import Stage

_DAMAGED = ("file is not a database", "database disk image is malformed")
"""What SQLite says of a file that it cannot read."""


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class _Restartable(Protocol):
    _restarts: Restarts


Owner = TypeVar("Owner", bound=_Restartable)


def repeated(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A ledger's method that may be called again where its connection is lost on the way: what it has done by
    then changes nothing for the second time."""

    @functools.wraps(method)
    def call(owner: Owner, /, *args: Arguments.args, **named: Arguments.kwargs) -> Result:
        deadline = owner._restarts.deadline()
        while True:
            try:
                return method(owner, *args, **named)
            except LedgerConnectionError:
                if not owner._restarts.wait(deadline):
                    raise

    return call


class Guarded:
    """A SQLAlchemy connection whose errors become what `failure` makes of them.

    Args:
        restarts: waits for a server that is being started again.
    """

    def __init__(
        self, connect: Any, failure: Callable[[Exception], ClipFarmError], restarts: Restarts | None = None
    ) -> None:
        self._connect, self._failure, self._restarts = connect, failure, restarts

    def __enter__(self) -> Connection:
        deadline = None if self._restarts is None else self._restarts.deadline()
        while True:
            try:
                self._context = self._connect()
                connection: Connection = self._context.__enter__()
                return connection
            except SQLAlchemyError as error:
                if deadline is None or self._restarts is None or not is_lost(error):
                    raise self._failure(error) from None
                if not self._restarts.wait(deadline):
                    raise self._failure(error) from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise self._failure(failure) from None
        if isinstance(error, SQLAlchemyError):
            raise self._failure(error) from None


def database_error(stage: Stage, url: URL, name: str, action: str, error: Exception) -> LedgerError:
    """The error of a stage's ledger, without its password, and with a way out where one is known.

    Args:
        name: where the ledger lies, for people.
        action: what was tried, such as `read`.
    """
    cause = str(getattr(error, "orig", None) or error).strip()
    for password in (url.password, *url.normalized_query.get("password", ())):
        for form in {password, quote(password, safe="")} if password else ():
            cause = cause.replace(form, "***")
    if isinstance(getattr(error, "orig", None), sqlite3.DatabaseError) and cause in _DAMAGED:
        cause += "; move the file away, and it is restored from its snapshot in the store"
    elif advice := hint(getattr(error, "orig", None) or error):
        cause += f"; {advice}"
    kind = LedgerConnectionError if is_lost(error) else LedgerError
    return kind(f"cannot {action} the {stage} ledger at {name}: {cause}")
