"""How the ledger's PostgreSQL is waited for: never for ever, and so that Ctrl-C is heard meanwhile.

The server ends statements and waits for locks that take too long, if it works. One that does not, be it
stopped, swapped out or behind a broken network, is given up from here. The URL's query may ask for other
times: `?connect_timeout=30&options=-c statement_timeout=5min -c lock_timeout=1min`, as libpq has them.
"""

from __future__ import annotations

import math
import re
import select
import time
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from clipfarm_dagster.ledger.patience import hurry, wait_for

if TYPE_CHECKING:
    import psycopg2.extensions

CONNECT_SECONDS = 10
LOCK_SECONDS = 20
STATEMENT_SECONDS = 30
RESTART_SECONDS = 30.0
"""A server that has worked before and cannot be reached, or ends its connections, is waited for so long."""

CONNECTIONS = 2
"""Most that the threads of a process keep open with one ledger; a further thread waits for one of them."""

_GRACE_SECONDS = 5
"""So much later than the server is to end a statement by itself, it is given up from here."""

_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A connection whose other end is gone without a word is noticed within half a minute."""

_MILLISECONDS = {"": 1, "us": 1e-3, "ms": 1, "s": 1e3, "min": 6e4, "h": 3.6e6, "d": 8.64e7}

_RESTART_LOOK_SECONDS = 0.25
_RESTARTING = ("57P01", "57P02", "57P03", "08006", "08003")
"""PostgreSQL's codes of a server that ends or starts, and of connections that are gone."""

_HINTS = {
    "55P03": f"another session has held a lock for longer than lock_timeout (by default {LOCK_SECONDS} s):"
    " see pg_locks and pg_stat_activity",
    "57014": f"a statement took longer than its statement_timeout (by default {STATEMENT_SECONDS} s): is the"
    " server overloaded? The URL's query can allow more: ?options=-c%20statement_timeout%3D5min",
}


def postgres_engine(url: URL) -> Engine:
    """An engine whose connections give up as this module says."""
    import psycopg2.extensions

    # for all connections of the process, Dagster's too, which only gain that Ctrl-C is heard
    psycopg2.extensions.set_wait_callback(_wait)
    limits = [
        f"SET LOCAL {name} = '{seconds}s'"
        for name, seconds in (("lock_timeout", LOCK_SECONDS), ("statement_timeout", STATEMENT_SECONDS))
        if _option(url, name) is None
    ]
    engine = create_engine(
        with_limits(url),
        pool_pre_ping=True,
        pool_size=CONNECTIONS,
        max_overflow=0,
        connect_args={"connection_factory": _patient_class(url)},
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # in each transaction: a session's settings get lost, or about, behind a pooler
        if limits:
            connection.exec_driver_sql("; ".join(limits))

    return engine


class Restarts:
    """Waits for the server of one URL while it is being started again."""

    _worked: ClassVar[set[str]] = set()
    """Addresses of servers that this process has reached; a wrong address is told at once."""

    def __init__(self, url: URL) -> None:
        self._server = f"{url.host}:{url.port}/{url.database}"

    def reached(self) -> None:
        """The server works."""
        self._worked.add(self._server)

    def deadline(self) -> float:
        """Until when what is begun now may wait, by `time.monotonic`."""
        return time.monotonic() + RESTART_SECONDS

    def wait(self, deadline: float) -> bool:
        """After a connection was lost: wait for a moment, and tell whether to try again."""
        if self._server not in self._worked or time.monotonic() > deadline:
            return False
        return not hurry.wait(_RESTART_LOOK_SECONDS)


def is_lost(error: Exception) -> bool:
    """Whether an error of SQLAlchemy's says that a server has ended a connection, or accepts none now."""
    if not isinstance(error, DBAPIError) or not type(error.orig).__module__.startswith("psycopg2"):
        return False
    import psycopg2

    if getattr(error.orig, "clipfarm_gave_up", False):
        return False
    if isinstance(error.orig, psycopg2.InterfaceError):
        return error.connection_invalidated
    # one that could not connect has no code
    return isinstance(error.orig, psycopg2.OperationalError) and error.orig.pgcode in (None, *_RESTARTING)


def with_limits(url: URL) -> URL:
    """The URL with what libpq itself is to wait for, unless its query has other times."""
    ours = {"connect_timeout": CONNECT_SECONDS, **_KEEPALIVE}
    missing = {name: str(value) for name, value in ours.items() if name not in url.query}
    return url.update_query_dict(missing)


def silence_seconds(url: URL) -> float:
    """How long a server may say nothing at all."""
    milliseconds = _option(url, "statement_timeout")
    if milliseconds is None:
        return STATEMENT_SECONDS + _GRACE_SECONDS
    return milliseconds / 1000 + _GRACE_SECONDS if milliseconds else math.inf


def hint(error: Exception) -> str | None:
    """What to do about an error of PostgreSQL's, where that can be said."""
    return _HINTS.get(getattr(error, "pgcode", None) or "")


def no_answer(seconds: float) -> str:
    """What to say of a server that was given up after some seconds."""
    return f"the server has not answered for {seconds:g} s; check that it is running and can be reached"


def _option(url: URL, name: str) -> float | None:
    """What the URL's query sets a time to, in milliseconds; 0 is without limit, None is not set."""
    options = " ".join(url.normalized_query.get("options", ()))
    found = re.findall(rf"-(?:c\s*|-){name}\s*=\s*'?(\d+(?:\.\d+)?)\s*([a-z]*)", options)
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * _MILLISECONDS.get(unit, 1)


def _patient_class(url: URL) -> type[psycopg2.extensions.connection]:
    """The class of a URL's connections: they know how long to wait."""
    import psycopg2.extensions

    connecting = float(str(with_limits(url).query["connect_timeout"])) or math.inf
    silence = silence_seconds(url)

    class Patient(psycopg2.extensions.connection):  # type: ignore[misc]
        @property
        def clipfarm_patience(self) -> float:
            connected = getattr(self, "clipfarm_connected", False)
            return silence if connected else connecting

    return Patient


def _wait(connection: Any) -> None:
    """Wait for what psycopg2 waits for."""
    import psycopg2
    from psycopg2.extensions import POLL_OK, POLL_READ

    patience = getattr(connection, "clipfarm_patience", math.inf)
    deadline = time.monotonic() + patience
    while (state := connection.poll()) != POLL_OK:
        events = select.POLLIN if state == POLL_READ else select.POLLOUT
        if not wait_for(connection.fileno(), events, deadline):
            error = psycopg2.OperationalError(no_answer(patience))
            error.clipfarm_gave_up = True  # waited for long enough already
            raise error
    if patience != math.inf:
        connection.clipfarm_connected = True
