"""Checks of the arguments of cone constructors and projections."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estimators import UserError

Floats = NDArray[np.float64]


def checked_points(x: ArrayLike, dimension: int) -> Floats:
    """Return finite points ``[*N, D]`` in float64, or say what is wrong with them."""
    points = np.asarray(x, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != dimension:
        raise UserError(f"x: expected points of dimension {dimension} in the last axis, got shape {points.shape}")
    if not np.isfinite(points).all():
        raise UserError("x: expected finite points, got NaN or infinity")
    return points


def finite_array(name: str, value: ArrayLike, axes: int) -> Floats:
    """Return a float64 copy of a non-empty finite array with this number of axes; ``name`` opens the error."""
    array = np.array(value, dtype=np.float64)
    if array.ndim != axes or not array.size:
        raise UserError(f"{name}: expected a non-empty array with {axes} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def nonzero_array(name: str, value: ArrayLike, axes: int) -> Floats:
    """Return what ``finite_array`` does, of an array that also has a non-zero entry."""
    array = finite_array(name, value, axes)
    if not array.any():
        raise UserError(f"{name}: expected a non-zero array, got zeros")
    return array


def checked_dimension(dimension: int, least: int) -> int:
    """Return the dimension, or say that it is too small."""
    if dimension < least:
        raise UserError(f"dimension: expected at least {least}, got {dimension}")
    return dimension
