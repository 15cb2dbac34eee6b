"""What is a vector, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from clipfarm_dagster.vectors.npy import VectorProblem, from_npy, l2_normalise, to_npy, vector_sha256


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


UNIT = np.full(4, 0.5, dtype=np.float32)


def test_a_vector_survives_its_file_bit_for_bit():
    vector = l2_normalise(np.random.default_rng(0).normal(size=(1, 768)))[0]

    assert vector.dtype == np.float32
    np.testing.assert_array_equal(from_npy(to_npy(vector), dimension=768), vector)
    assert vector_sha256(from_npy(to_npy(vector))) == vector_sha256(vector)


@pytest.mark.parametrize("array", [UNIT, UNIT.astype(np.float64), UNIT.reshape(2, 2), UNIT[:0]], ids=str)
def test_a_file_is_what_numpy_writes(array: np.ndarray):
    assert to_npy(array) == npy(array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_whatever_header_a_file_has_its_vector_is_read(version: tuple[int, int]):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, UNIT, version=version)

    np.testing.assert_array_equal(from_npy(buffer.getvalue(), dimension=4), UNIT)
    np.testing.assert_array_equal(from_npy(buffer.getvalue()), UNIT)


def test_each_row_is_scaled_to_length_one():
    rows = l2_normalise(np.array([[3.0, 4.0], [1e-20, 0.0], [1e20, 1e20]], dtype=np.float32))

    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows[0], [0.6, 0.8], atol=1e-7)


@pytest.mark.parametrize(
    ("row", "told"),
    [([0.0, 0.0], "zeros"), ([np.nan, 1.0], "not finite"), ([np.inf, 1.0], "not finite")],
)
def test_what_has_no_direction_is_refused(row: list[float], told: str):
    with pytest.raises(VectorProblem, match=told):
        l2_normalise(np.array([[1.0, 0.0], row]))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a readable"),
        (b"no npy", "not a readable"),
        (npz(UNIT), "not a readable"),
        (npy(UNIT)[:-3], "not a readable"),
        (npy(UNIT.astype(np.float64)), "1-D float64"),
        (npy(UNIT.reshape(2, 2)), "2-D float32"),
        (npy(np.full(9, 1 / 3, dtype=np.float32)), "9 numbers, not 4"),
        (npy(UNIT * 2), "L2 norm 2"),
        (npy(np.array([np.nan, 0, 0, 1], dtype=np.float32)), "L2 norm nan"),
        (npy(np.array([{"pickled": 1}] * 4, dtype=object)), "not a readable"),
    ],
    ids=["empty", "text", "archive", "cut", "double", "matrix", "dimension", "length", "nan", "pickle"],
)
def test_bytes_that_are_no_vector_are_refused_with_their_reason(data: bytes, told: str):
    with pytest.raises(VectorProblem, match=told) as raised:
        from_npy(data, dimension=4)
    assert "pickle.load" not in str(raised.value)
