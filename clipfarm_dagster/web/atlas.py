"""The embedding viewer as an app, behind the guard. Its own command has no place for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.web.guard import Guard
from clipfarm_dagster.web.serving import serve

if TYPE_CHECKING:
    import pyarrow as pa

SQL = "/data/query"
"""Where the viewer's page sends its SQL; over a DuckDB in memory, which may open no file."""
_ROW = "__row_index__"


def serve_atlas(table: pa.Table, identifier: str, port: int, other_hosts: frozenset[str]) -> None:
    """Serve a map of the rows by their `x` and `y`, with `title` and `thumbnail`, until interrupted.

    Args:
        table: what `clipfarm_dagster.explore.atlas.atlas_table` gives.
        identifier: what the viewer keeps its own cache under; the same for the same table.
        port: port on 127.0.0.1.
        other_hosts: a proxy's names.
    """
    import embedding_atlas
    from embedding_atlas.data_source import DataSource
    from embedding_atlas.options import make_embedding_atlas_props
    from embedding_atlas.server import make_server

    rows = table.to_pandas()
    rows[_ROW] = range(len(rows))
    props = make_embedding_atlas_props(row_id=_ROW, x="x", y="y", text="title", image="thumbnail")
    app = make_server(
        DataSource(identifier, rows, {"props": props}),
        static_path=str(Path(embedding_atlas.__file__).with_name("static")),
        duckdb_uri="server",
    )
    serve(app, Guard(port, other_hosts, frozenset({SQL})))
