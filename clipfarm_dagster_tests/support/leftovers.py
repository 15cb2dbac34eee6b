"""What is left of some videos, byte for byte: in a folder, a bucket and a dump of a database.

Nothing of ClipFarm is used here, so that it can be a witness. Bytes are looked through as they are, and once
more in all that they contain: gzip, zlib, zip, Parquet, SQLite, hexadecimal values of a dump.

It is a process of its own: a process that opens a file of SQLite and closes it loses the locks that its
connections have on it.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Needles = Mapping[str, Sequence[bytes]]
"""What is looked for, by what it is: `id`, `vector`, `preview`, `text`."""

_PIECE = 16
"""Bytes of something long that count as a find, for a page of a database may end anywhere."""
_AT_A_TIME = 64 << 20
_IN_ONE_PATTERN = 200
_ZLIB = tuple(bytes([0x78, second]) for second in (0x01, 0x5E, 0x9C, 0xDA))
_SQLITE = b"SQLite format 3\0"
_HEX = re.compile(rb"\\\\x([0-9a-f]{16,})")


def pieces(data: bytes) -> list[bytes]:
    """Parts of some bytes, as they are and as text: hexadecimal and base64. None is of the beginning or the
    end, which are alike in all pictures."""
    found = []
    for start in (len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        piece = data[start : start + _PIECE]
        found += [piece, piece.hex().encode(), piece.hex().upper().encode()]
        for shift in range(3):  # of the three ways in which it may stand in a longer text
            found.append(base64.b64encode(piece[shift : shift + (len(piece) - shift) // 3 * 3]))
    return found


def vector_pieces(numbers: np.ndarray) -> list[bytes]:
    """A vector's numbers, in every precision that somebody may keep them in, and its first ones as text."""
    numbers = np.ascontiguousarray(numbers, dtype="<f4")
    brief = np.ascontiguousarray(numbers.view("<u2")[1::2])  # bfloat16
    found = pieces(numbers.tobytes())
    for other in (numbers.astype("<f2"), numbers.astype("<f8"), brief):
        found += [other.tobytes()[:_PIECE], other.tobytes()[-_PIECE:]]
    texts = [text for number in numbers[:4] for text in (str(float(number)), str(number))]
    return found + [text.encode() for text in texts if len(text) > 9]


def leftovers(
    needles: Needles, neighbours: Collection[str], *, folder: Path, bucket: str, database: str | None
) -> list[str]:
    """What is left of some videos, as lines `kind: place`.

    Args:
        neighbours: ids that have one of those inside that are looked for.
        folder: all of whose files are looked through.
        bucket: its URL.
        database: URL of a PostgreSQL database, if there is one.
    """
    asked = pickle.dumps((needles, neighbours, folder, bucket, database))
    command = [sys.executable, "-m", __name__]
    found: list[str] = pickle.loads(
        subprocess.run(command, input=asked, check=True, stdout=subprocess.PIPE).stdout
    )
    return found


class Scan:
    """Looks through places, one after the other.

    Args:
        neighbours: ids that have one of those inside that are looked for.
    """

    def __init__(self, needles: Needles, neighbours: Collection[str] = ()) -> None:
        self._neighbours = [video_id.encode() for video_id in neighbours]
        self._patterns = [
            (kind, "|".join(map(_escaped, some[start : start + _IN_ONE_PATTERN])))
            for kind, some in needles.items()
            for start in range(0, len(some), _IN_ONE_PATTERN)
        ]
        self._waiting: list[tuple[str, bytes]] = []
        self._found: dict[str, None] = {}
        self.bytes = 0

    @property
    def found(self) -> list[str]:
        """Lines `kind: place`."""
        self._search()
        return sorted(self._found)

    def folder(self, folder: Path) -> None:
        """All files of a folder, and their names; write-ahead logs and temporary files too."""
        for path in sorted(folder.rglob("*")):
            self._look(path.name.encode(), f"{path}: its name")
            if path.is_file():
                self._look(path.read_bytes(), str(path), path)

    def bucket(self, url: str) -> None:
        """All objects of a bucket, all their versions, and the names of those that were removed."""
        client, bucket = boto3.client("s3"), url.removeprefix("s3://")
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for mark in page.get("DeleteMarkers", []):
                self._look(mark["Key"].encode(), f"{mark['Key']}: the name of what was removed")
            for entry in page.get("Versions", []):
                key, version = entry["Key"], {"VersionId": entry["VersionId"]}
                place = key if entry["IsLatest"] else f"{key}: a previous version"
                self._look(key.encode(), f"{place}: its name")
                more = {} if entry["VersionId"] == "null" else version
                self._look(client.get_object(Bucket=bucket, Key=key, **more)["Body"].read(), place)

    def database(self, url: str) -> None:
        """A dump of a PostgreSQL database, as a backup would have it."""
        data = dump(url)
        self._look(data, "dump")
        for match in _HEX.finditer(data):
            if len(match[1]) % 2 == 0:
                self._look(bytes.fromhex(match[1].decode()), "dump: bytea")

    def _look(self, data: bytes, place: str, path: Path | None = None) -> None:
        """Some bytes, and what they contain."""
        rest = data
        for neighbour in self._neighbours:
            rest = rest.replace(neighbour, b"\0")
        self._waiting.append((place, rest))
        self.bytes += len(data)
        if sum(len(waiting) for _, waiting in self._waiting) > _AT_A_TIME:
            self._search()
        if data.startswith(b"\x1f\x8b"):
            self._look(zlib.decompressobj(31).decompress(data), f"{place}: gzip")
        elif data.startswith(_ZLIB):
            with suppress(zlib.error):  # it may only begin like one
                self._look(zlib.decompressobj().decompress(data), f"{place}: zlib")
        elif data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                for name in packed.namelist():
                    self._look(name.encode() + b"\0" + packed.read(name), f"{place}: {name}")
        elif data.startswith(b"PAR1"):
            table = pq.read_table(io.BytesIO(data))
            for name in table.column_names:
                for buffer in (b for chunk in table[name].chunks for b in chunk.buffers() if b is not None):
                    self._look(b"\0" + buffer.to_pybytes(), f"{place}: column {name}")
        elif data.startswith(_SQLITE):
            self._look_into_sqlite(data, place, path)

    def _look_into_sqlite(self, data: bytes, place: str, path: Path | None) -> None:
        """Every value of a database as a whole, for a long one lies in pieces on several pages."""
        opened = sqlite3.connect(f"file:{path}?mode=ro", uri=True) if path else sqlite3.connect(":memory:")
        with closing(opened) as connection:
            if path is None:
                connection.deserialize(data[:18] + b"\1\1" + data[20:])  # not in the mode that needs a file
            connection.text_factory = bytes
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                rows = connection.execute(f'SELECT * FROM "{name.decode()}"')
                values = [value for row in rows for value in row if isinstance(value, bytes)]
                self._look(b"\0" + b"\0".join(values), f"{place}: table {name.decode()}")
                for value in values:
                    if value.startswith((b"\x1f\x8b", *_ZLIB)):
                        self._look(value, f"{place}: table {name.decode()}")

    def _search(self) -> None:
        places = [place for place, _ in self._waiting]
        array = pa.array([data for _, data in self._waiting], pa.large_binary())
        self._waiting.clear()
        for kind, pattern in self._patterns if places else []:
            held = pc.match_substring_regex(array, pattern).to_pylist()
            self._found |= {f"{kind}: {place}": None for place, has in zip(places, held, strict=True) if has}


def _escaped(needle: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in needle)


def dump(url: str) -> bytes:
    """What `pg_dump` writes of a database."""
    return subprocess.run([_program("pg_dump"), url], check=True, capture_output=True).stdout


def restore(url: str, dumped: bytes) -> None:
    """Write a dump into an empty database."""
    command = [_program("psql"), "-q", "-v", "ON_ERROR_STOP=1", url]
    subprocess.run(command, check=True, input=dumped, capture_output=True)


def _program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps off the PATH, one folder a version."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(debian[-1]) if debian else None)
    assert found is not None, f"{name} is not installed"
    return found


def main() -> None:
    """Answer what `leftovers` asks."""
    needles, neighbours, folder, bucket, database = pickle.load(sys.stdin.buffer)
    scan = Scan(needles, neighbours)
    scan.folder(folder)
    scan.bucket(bucket)
    if database is not None:
        scan.database(database)
    sys.stdout.buffer.write(pickle.dumps(scan.found))


if __name__ == "__main__":
    main()
