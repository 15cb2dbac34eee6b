"""Vectors to a file, and from a file: what is recorded, what is refused, and what the delta makes of it."""

from __future__ import annotations

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfarm_dagster.errors import VectorFileError
from clipfarm_dagster.ledger.verify import verify_vectors
from clipfarm_dagster.manifests.refresh import current_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.transfer.exports import export_vectors
from clipfarm_dagster.transfer.imports import import_vectors
from clipfarm_dagster.transfer.vector_file import VectorFile
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.npy import from_npy, l2_normalise
from clipfarm_dagster_tests.support.corpora import embed, open_corpus, write_metadata
from clipfarm_dagster_tests.support.stages import opened

IDS = [f"v{number:02d}" for number in range(12)]
ELSEWHERE = {"model": "somebody/no-model-of-this-machine", "revision": "e" * 40}
OTHER = Contract(
    stage=Stage.VIDEO,
    model_name="somebody/model",
    model_revision="f" * 40,
    preprocess_name="their-own",
    preprocess_version="3",
    pooling="mean",
    dtype="float32",
)


@pytest.fixture
def corpus(tmp_path):
    corpus = open_corpus(tmp_path, video=ELSEWHERE)
    write_metadata(corpus, IDS)
    return corpus


def _unit(count, dimension=8, seed=0):
    return l2_normalise(np.random.default_rng(seed).standard_normal((count, dimension)))


def _write(path, ids, vectors):
    if path.suffix == ".npz":
        np.savez(path, video_id=np.array(ids), embedding=np.array(vectors, dtype=np.float32))
    else:
        column = pa.array([None if v is None else list(v) for v in vectors], pa.list_(pa.float32()))
        pq.write_table(pa.table({"video_id": ids, "embedding": column}), path)
    return VectorFile(path)


def _put_raw(corpus, ids):
    for video_id in ids:
        corpus.store.put(corpus.keys.raw(Stage.VIDEO, video_id), b"a clip")


def _plan(corpus):
    with corpus.ledger(Stage.VIDEO) as ledger:
        return opened(corpus, ledger).plan(corpus.latest_rows())


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_what_is_exported_can_be_imported_elsewhere(corpus, tmp_path, suffix):
    made = embed(corpus, Stage.VIDEO, IDS)
    out = tmp_path / f"out{suffix}"
    done = export_vectors(corpus, Stage.VIDEO, out)
    assert (done.vectors, done.dimension, done.dropped) == (12, 8, [])

    other = open_corpus(tmp_path / "other", video=ELSEWHERE)
    write_metadata(other, IDS)
    _put_raw(other, IDS)
    file = VectorFile(out)
    contract = corpus.contract(Stage.VIDEO)
    assert file.contract == contract
    imported = import_vectors(other, Stage.VIDEO, file, contract)

    assert (len(imported.rows), imported.kept, imported.refused) == (12, 0, {})
    for video_id, vector in made.items():
        stored = from_npy(other.store.get(other.keys.embedding(Stage.VIDEO, video_id)).data)
        np.testing.assert_array_equal(stored, vector)
    assert _plan(other).delta == 0
    with other.ledger(Stage.VIDEO) as ledger:
        assert current_manifest(opened(other, ledger)).table["video_id"].to_pylist() == IDS
        assert ledger.contract(contract.id) == contract
        assert {finding.problem for finding in verify_vectors(ledger, other.store, other.keys)} == {None}


def test_an_exported_file_opens_everywhere(corpus, tmp_path):
    made = embed(corpus, Stage.VIDEO, IDS)
    path = tmp_path / "out.parquet"
    export_vectors(corpus, Stage.VIDEO, path)
    expected = np.stack([made[i] for i in IDS])

    assert str(pq.read_schema(path).field("embedding").type).startswith("fixed_size_list<element: float")
    np.testing.assert_array_equal(np.stack(pd.read_parquet(path)["embedding"]), expected)
    frame = pl.read_parquet(path)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 8)
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), expected)
    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(path)).fetchall()
    np.testing.assert_array_equal(np.array([row[1] for row in rows], dtype=np.float32), expected)
    with pytest.raises(VectorFileError, match=r"\.parquet or \.npz"):
        export_vectors(corpus, Stage.VIDEO, tmp_path / "out.csv")


def test_missing_and_wrong_vectors_are_named_and_not_exported(corpus, tmp_path):
    embed(corpus, Stage.VIDEO, IDS)
    corpus.store.delete(corpus.keys.embedding(Stage.VIDEO, "v03"))

    done = export_vectors(corpus, Stage.VIDEO, tmp_path / "out.npz")

    assert [lost.video_id for lost in done.dropped] == ["v03"]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert len(arrays["video_id"]) == len(arrays["embedding"]) == 11


def test_vectors_of_another_contract_are_kept_in_a_generation_of_their_own(corpus, tmp_path):
    _put_raw(corpus, IDS)

    done = import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "f.parquet", IDS, _unit(12)), OTHER)

    assert (done.serves, done.wanted) == (False, False)
    assert _plan(corpus).reasons == {"new": 12}
    with corpus.stage(Stage.VIDEO) as serving:
        assert current_manifest(serving).table.num_rows == 0
        other = serving.under(OTHER)
        assert current_manifest(other).table.num_rows == 12
        assert all(
            finding.problem is None for finding in verify_vectors(other.ledger, corpus.store, corpus.keys)
        )
        row = other.ledger.rows(["v00"])["v00"]
    assert row.artifact_key == corpus.keys.generation(Stage.VIDEO, OTHER.id, "v00")
    assert (row.model_name, row.model_revision, row.preprocess_version) == ("somebody/model", "f" * 40, "3")


def test_a_changed_clip_is_embedded_anew_after_the_import(corpus, tmp_path):
    _put_raw(corpus, IDS)
    file = _write(tmp_path / "f.npz", IDS, _unit(12))
    import_vectors(corpus, Stage.VIDEO, file, corpus.contract(Stage.VIDEO))
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "v05"), b"another clip")

    assert _plan(corpus).work["video_id"].to_pylist() == ["v05"]


def test_without_raw_objects_vectors_are_done_until_one_appears(corpus, tmp_path):
    file = _write(tmp_path / "f.npz", IDS, _unit(12))
    import_vectors(corpus, Stage.VIDEO, file, corpus.contract(Stage.VIDEO))
    plan = _plan(corpus)
    assert (plan.delta, plan.missing_raw_object) == (0, 0)

    _put_raw(corpus, ["v01"])

    assert _plan(corpus).work["video_id"].to_pylist() == ["v01"]


def test_vectors_that_stand_are_left_alone(corpus, tmp_path):
    _put_raw(corpus, IDS)
    contract = corpus.contract(Stage.VIDEO)
    import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "a.npz", IDS[:5], _unit(5)), contract)

    again = import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "b.npz", IDS, _unit(12, seed=1)), contract)

    assert (len(again.rows), again.kept) == (7, 5)
    stored = from_npy(corpus.store.get(corpus.keys.embedding(Stage.VIDEO, "v00")).data)
    np.testing.assert_array_equal(stored, _unit(5)[0])


@pytest.mark.parametrize("raw", ["there", "gone"])
def test_vectors_give_way_only_where_asked_or_where_the_input_changed(corpus, tmp_path, raw):
    _put_raw(corpus, IDS)
    done = _write(tmp_path / "done.npz", IDS[:5], _unit(5))
    import_vectors(corpus, Stage.VIDEO, done, OTHER)
    corpus.store.put(corpus.keys.raw(Stage.VIDEO, "v04"), b"another clip, so that v04 is to be embedded anew")
    if raw == "gone":
        corpus.store.delete(corpus.keys.raw(Stage.VIDEO, "v00"))
    file = _write(tmp_path / "other.npz", IDS, _unit(12, seed=1))

    imported = import_vectors(corpus, Stage.VIDEO, file, OTHER)

    assert ([row.video_id for row in imported.rows], imported.kept) == (IDS[4:], 4)
    key = corpus.keys.generation(Stage.VIDEO, OTHER.id, "v00")
    np.testing.assert_array_equal(from_npy(corpus.store.get(key).data), _unit(5)[0])
    replaced = import_vectors(corpus, Stage.VIDEO, file, OTHER, replace_done=True)
    assert (len(replaced.rows), replaced.kept) == (12, 0)
    np.testing.assert_array_equal(from_npy(corpus.store.get(key).data), _unit(12, seed=1)[0])


def test_importing_another_contract_leaves_what_serves_as_it_is(corpus, tmp_path):
    _put_raw(corpus, IDS)
    contract = corpus.contract(Stage.VIDEO)
    assert import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "a.npz", IDS, _unit(12)), contract).serves

    import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "b.npz", IDS, _unit(12, seed=1)), OTHER)

    assert _plan(corpus).delta == 0
    with corpus.stage(Stage.VIDEO) as serving:
        assert current_manifest(serving).table.num_rows == 12
        assert all(f.problem is None for f in verify_vectors(serving.ledger, corpus.store, corpus.keys))


def test_bad_rows_are_refused_by_name_and_cost_the_others_nothing(corpus, tmp_path):
    vectors = list(_unit(9))
    vectors[1] = vectors[1] * 2
    vectors[2] = vectors[2] * np.nan
    vectors[3] = vectors[3][:7]
    vectors[4] = None
    ids = ["v00", "v01", "v02", "v03", "v04", "../../evil", "stranger", "v00", "v08"]

    done = import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "f.parquet", ids, vectors), OTHER)

    assert [row.video_id for row in done.rows] == ["v00", "v08"]
    assert done.refused == {
        "v01": "L2 norm 2, not 1",
        "v02": "L2 norm nan, not 1",
        "v03": "7 numbers, not 8",
        "v04": "it has no vector",
        "../../evil": "its video_id cannot be used in a key",
        "stranger": "it is not in the metadata",
        "v00": "it occurs twice; the first one counts",
    }
    stored = {corpus.keys.generation(Stage.VIDEO, OTHER.id, video_id) for video_id in ("v00", "v08")}
    assert set(corpus.store.list("clipfarm/generations")["key"].to_pylist()) == stored
    assert corpus.store.list("clipfarm/embeddings").num_rows == 0


def test_another_dimension_than_that_of_the_contract_is_refused(corpus, tmp_path):
    embed(corpus, Stage.VIDEO, IDS[:3])
    contract = corpus.contract(Stage.VIDEO)

    done = import_vectors(corpus, Stage.VIDEO, _write(tmp_path / "f.npz", IDS[5:], _unit(7, 16)), contract)

    assert not done.rows
    assert set(done.refused.values()) == {"16 numbers, not 8"}


def test_another_dimension_than_that_of_the_configured_checkpoint_is_refused(tmp_path, checkpoints):
    corpus = open_corpus(tmp_path, video={"model": checkpoints["CLIPFARM_VIDEO_MODEL"]})
    write_metadata(corpus, IDS)
    wrong, right = _write(tmp_path / "w.npz", IDS, _unit(12)), _write(tmp_path / "r.npz", IDS, _unit(12, 768))

    done = import_vectors(corpus, Stage.VIDEO, wrong, corpus.contract(Stage.VIDEO))

    assert (done.rows, set(done.refused.values())) == ([], {"8 numbers, not 768"})
    assert len(import_vectors(corpus, Stage.VIDEO, wrong, OTHER).rows) == 12
    assert len(import_vectors(corpus, Stage.VIDEO, right, corpus.contract(Stage.VIDEO)).rows) == 12


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("doubles.parquet", "not a list of float32"),
        ("columns.parquet", "no column 'embedding'"),
        ("broken.parquet", "cannot be read"),
        ("absent.npz", "cannot be read"),
        ("shape.npz", "not float32"),
        ("pickled.npz", "cannot be read"),
        ("cut-off.npz", "cut-off.npz: cannot be read"),
        ("compressed-damage.npz", "compressed-damage.npz: cannot be read"),
        ("one-array.npz", "one-array.npz: it is a single array without a name"),
        ("empty.npz", "empty.npz: cannot be read"),
        ("file.csv", "name a file that ends in"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, name, problem):
    path = tmp_path / name
    if name == "doubles.parquet":
        pq.write_table(pa.table({"video_id": IDS, "embedding": _unit(12).astype(float).tolist()}), path)
    elif name == "columns.parquet":
        pq.write_table(pa.table({"video_id": IDS}), path)
    elif name == "broken.parquet":
        path.write_bytes(b"PAR1")
    elif name == "shape.npz":
        np.savez(path, video_id=np.array(IDS), embedding=np.ones(12, dtype=np.float32))
    elif name == "pickled.npz":
        np.savez(path, video_id=np.array([{}, {}], dtype=object), embedding=_unit(2), allow_pickle=True)
    elif name == "cut-off.npz":
        _write(path, IDS, _unit(12))
        path.write_bytes(path.read_bytes()[:300])
    elif name == "compressed-damage.npz":
        np.savez_compressed(path, video_id=np.array(IDS), embedding=_unit(12))
        data = path.read_bytes()
        path.write_bytes(data[:60] + b"\xff" * 20 + data[80:])
    elif name == "one-array.npz":
        with path.open("wb") as file:
            np.save(file, _unit(12))
    elif name == "empty.npz":
        path.touch()

    with pytest.raises(VectorFileError, match=problem):
        VectorFile(path)
