"""The file of fused vectors: who can read it, what a crash leaves, and what damage is told."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.errors import FusionError, ManifestError
from clipfarm_dagster.explore.projection import project_file
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster_tests.manifests.test_fusion import IDS, fused_vectors, refresh
from clipfarm_dagster_tests.support.corpora import embed_all, open_corpus


def test_a_damaged_file_before_is_made_anew(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    corpus.store.put(corpus.keys.fused_manifest("concat"), b"PAR1 no more")

    assert refresh(corpus).objects_read == 36
    assert list(fused_vectors(corpus)) == IDS


def _damage(corpus, column):
    """Overwrite the data of a column of the fused manifest, and leave its footer as it is."""
    key = corpus.keys.fused_manifest("concat")
    data = bytearray(corpus.store.get(key).data)
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    [chunk] = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(column)]
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    corpus.store.put(key, bytes(data))


def test_a_file_before_whose_inputs_are_damaged_is_made_anew(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    _damage(corpus, "audio_source_hash")

    assert refresh(corpus).objects_read == 36
    assert list(fused_vectors(corpus)) == IDS


def test_damaged_vectors_name_the_object_and_what_to_do(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    _damage(corpus, "fused_vector")
    embed_all(corpus, ["a-new-one"])
    named = f"'{corpus.keys.fused_manifest('concat')}' cannot be read .*delete it there and materialize"

    with pytest.raises(ManifestError, match=named):
        refresh(corpus)
    with pytest.raises(ManifestError, match=named):
        fused_vectors(corpus)

    corpus.store.delete(corpus.keys.fused_manifest("concat"))
    assert refresh(corpus).rows == 13


@pytest.mark.parametrize("read", [count_vectors, lambda file: list(iter_vectors(file)), project_file])
@pytest.mark.parametrize("damage", ["cut off", "another table"])
def test_every_reader_names_a_damaged_file(tmp_path, read, damage):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    key = corpus.keys.fused_manifest("concat")
    if damage == "cut off":
        corpus.store.put(key, corpus.store.get(key).data[:-100])
    else:
        pq.write_table(pa.table({"video_id": IDS}), tmp_path / "table")
        corpus.store.put(key, (tmp_path / "table").read_bytes())

    with pytest.raises(ManifestError, match=f"'{key}' cannot be read"):
        read(fused_file(corpus, "concat"))


def test_a_fused_manifest_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ManifestError, match="materialize the partition 'mean'"):
        fused_file(open_corpus(tmp_path), "mean")
    with pytest.raises(FusionError, match="there are concat, mean, weighted"):
        fused_file(open_corpus(tmp_path), "../x")


@pytest.fixture
def fused(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS)
    refresh(corpus)
    path = tmp_path / "fused.parquet"
    corpus.store.download(corpus.keys.fused_manifest("concat"), path)
    return path


def test_pyarrow_reads_a_fixed_size_list_of_float32(fused):
    kind = pq.read_schema(fused).field("fused_vector").type

    assert pa.types.is_fixed_size_list(kind)
    assert (kind.list_size, kind.value_type) == (24, pa.float32())


def test_pandas_polars_and_duckdb_read_the_vectors(fused):
    [(ids, vectors)] = iter_vectors(LocalFile(fused, "the fused manifest", ""))

    frame = pd.read_parquet(fused)
    np.testing.assert_array_equal(np.stack(frame["fused_vector"]), vectors)
    assert frame["fused_vector"].iloc[0].dtype == np.float32

    polars = pl.read_parquet(fused)
    assert polars.schema["fused_vector"] == pl.Array(pl.Float32, 24)
    np.testing.assert_array_equal(polars["fused_vector"].to_numpy(), vectors)

    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(fused))
        assert str(rows.types[rows.columns.index("fused_vector")]) == "FLOAT[]"
        nearest = connection.sql(
            "SELECT a.video_id, list_cosine_similarity(a.fused_vector, b.fused_vector) AS score"
            " FROM rows a, rows b WHERE b.video_id = 'v00' ORDER BY score DESC LIMIT 1"
        ).fetchall()
    assert nearest[0][0] == "v00"
    assert ids == IDS


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import obstore.store, pyarrow.parquet as pq  # used in children only: threads do not survive a fork
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed_all, open_corpus
from clipfarm_dagster_tests.manifests.test_fusion import IDS, refresh

home, round_seconds = Path(sys.argv[1]), float(sys.argv[2])

def write(number, started):
    corpus = open_corpus(home)
    for round in range(1000):
        embed_all(corpus, IDS, version=f"{number}.{round}")
        refresh(corpus)
        os.write(started, b".")  # from the second round on, nothing is imported any more

def check():
    files = [home / "store/clipfarm/fused/concat/fused_manifest.parquet"]
    files += [home / f"store/clipfarm/manifests/{stage}.parquet" for stage in Stage]
    for file in files:
        table = pq.read_table(file)
        table.validate(full=True)
        assert table["video_id"].to_pylist() == IDS, file

for number in range(20):
    heard, started = os.pipe()
    writer = os.fork()
    if writer == 0:
        write(number, started)
    os.read(heard, 1)
    time.sleep(random.uniform(0, 2 * round_seconds))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    checker = os.fork()
    if checker == 0:
        check()
        os._exit(0)
    assert os.waitpid(checker, 0)[1] == 0
    print((home / "store/clipfarm/fused/concat/fused_manifest.parquet").stat().st_mtime_ns)
"""


def test_a_writer_killed_at_twenty_moments_leaves_whole_manifests(tmp_path):
    corpus = open_corpus(tmp_path)
    embed_all(corpus, IDS, version="0")
    refresh(corpus)
    embed_all(corpus, IDS, version="1")
    started = time.monotonic()
    refresh(corpus)
    round_seconds = time.monotonic() - started

    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(round_seconds)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    versions = done.stdout.split()
    assert len(versions) == 20
    assert len(set(versions)) > 1  # some writers came far enough to replace the file
    embed_all(corpus, IDS, version="end")
    refresh(corpus)
    assert list(fused_vectors(corpus)) == IDS
