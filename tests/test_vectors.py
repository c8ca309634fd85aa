"""Vectors, the tensors they are made of, and matrices whose rows and columns lie well in memory."""

import pytest
import torch
from helpers import (
    random,
)

from estimators.vectors import ALIGNMENT, aligned_rows, columns, flatten, named, unflatten


def test_flatten_inverts_unflatten():
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(4, 1, 1)}
    vector = random(11)
    assert torch.equal(flatten(unflatten(vector, list(like.values()))), vector)
    parts = named(vector, like)
    assert {name: part.shape for name, part in parts.items()} == {name: part.shape for name, part in like.items()}
    assert torch.equal(parts["c"].reshape(-1), vector[7:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0, 1, 7, 16, 1000])
def test_rows_start_where_an_allocation_of_their_own_could(dtype, length):
    rows = aligned_rows(3, length, dtype, torch.device("cpu"))
    assert rows.shape == (3, length)
    assert rows.dtype == dtype
    first = rows[0].data_ptr()
    assert all(row.is_contiguous() and (row.data_ptr() - first) % ALIGNMENT == 0 for row in rows)
    for number, row in enumerate(rows):
        row.fill_(number)
    assert [set(row.tolist()) for row in rows] == [{float(k)} if length else set() for k in range(3)]


def test_columns_are_contiguous_and_copied_only_where_they_must_be():
    matrix = random(64, 3)
    for k, column in enumerate(columns(matrix)):
        assert column.is_contiguous()
        assert torch.equal(column, matrix[:, k])
        assert column.untyped_storage().data_ptr() != matrix.untyped_storage().data_ptr()
    rows = aligned_rows(3, 64, matrix.dtype, matrix.device)
    rows.copy_(matrix.T)
    assert all(column.data_ptr() == row.data_ptr() for column, row in zip(columns(rows.T), rows, strict=True))


def test_sums_have_the_same_bits_alone_and_in_company():
    matrix = random(1001, 5).float()
    rows = aligned_rows(5, 1001, matrix.dtype, matrix.device)
    rows.copy_(matrix.T)
    alone = [float(column.sum()) for column in columns(matrix)]
    assert [float(row.sum()) for row in rows] == alone


def test_flatten_of_nothing_and_views_of_a_vector():
    vector = random(6)
    (part,) = unflatten(vector, [torch.zeros(2, 3)])
    part[1, 2] = 5
    assert vector[5] == 5  # a view, not a copy
    with pytest.raises(RuntimeError, match="split"):
        unflatten(vector, [torch.zeros(7)])
