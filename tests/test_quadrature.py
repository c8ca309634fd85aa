"""Gauss and Gauss-Radau rules: exactness, the prescribed node and two-sided bounds."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Dense, assert_close, random, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import Tridiagonal, averaged_gauss, even_bracket, gauss, gauss_radau, lanczos, steady_gauss

SPECTRA = {
    "signed": torch.linspace(-1, 1, 40, dtype=torch.float64),
    "positive": torch.linspace(0.1, 1, 40, dtype=torch.float64),
    "clustered": torch.cat([torch.zeros(20), torch.linspace(0.9, 1, 20)]).double(),
}
spectra = pytest.mark.parametrize("name", SPECTRA)
steps_ = pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])


def run(spectrum, steps, seed=0):
    """Return a Lanczos matrix and the weights of the eigenvalues in the start vector."""
    start = random(len(spectrum), seed=seed)
    return lanczos(Dense(spectrum), start, steps), ((start / start.norm()) ** 2).numpy()


def error(rule, spectrum, weight, function):
    nodes, weights = rule
    return float(weights @ function(nodes) - weight @ function(spectrum.numpy()))


def monic(rule):
    """Return the polynomial of the least degree that vanishes on a rule's nodes, scaled to size one."""
    return lambda x: np.prod([x - node for node in rule[0]], axis=0)


# ------------------------------------------------------------------------------------------------ exactness


@steps_
@spectra
def test_weights_form_a_probability(name, steps):
    matrix, _ = run(SPECTRA[name], steps)
    for rule, count in (
        (gauss(matrix), matrix.steps),
        (gauss_radau(matrix, -1.5), matrix.steps + (not matrix.exhausted)),
    ):
        nodes, weights = rule
        assert len(nodes) == len(weights) == count
        assert (weights >= 0).all()
        assert_close(weights.sum(), 1.0)
        assert (np.diff(nodes) > 0).all()


@steps_
@spectra
def test_gauss_is_exact_to_degree_2m_minus_1_and_not_beyond(name, steps):
    spectrum = SPECTRA[name]
    matrix, weight = run(spectrum, steps)
    assert not matrix.exhausted
    rule = gauss(matrix)
    for degree in range(2 * steps):
        assert abs(error(rule, spectrum, weight, lambda x, k=degree: x**k)) <= tolerance(torch.float64)
    vanishing = monic(rule)
    miss = -error(rule, spectrum, weight, lambda x: vanishing(x) ** 2)
    expected = float(np.prod(matrix.beta**2)) * matrix.residual**2
    if expected > 1e-15:  # otherwise the miss is below the rounding of the integrals
        assert_close(miss, expected)
    else:
        assert name == "clustered"


@steps_
@spectra
@pytest.mark.parametrize("node", [-1.0, -3.0, 1.0, 2.0])
def test_radau_is_exact_to_degree_2m_with_the_node(name, steps, node):
    spectrum = SPECTRA[name]
    if node == -1.0 and name != "signed":
        node = float(spectrum[0])
    matrix, weight = run(spectrum, steps)
    rule = gauss_radau(matrix, node)
    nodes = rule[0]
    assert (nodes[0] if node < 0.5 else nodes[-1]) == node
    for degree in range(2 * steps + 1):
        size = max(1.0, abs(node)) ** degree
        assert abs(error(rule, spectrum, weight, lambda x, k=degree: x**k)) <= tolerance(torch.float64) * size
    inner = [place for place in nodes if abs(place - node) > 1e-8]
    if len(inner) < steps:  # a Gauss node lies on the prescribed one
        assert name == "clustered"
        return
    assert len(inner) == steps
    sign = 1.0 if node < 0.5 else -1.0

    def next_degree(x):
        return sign * (x - node) * np.prod([x - place for place in inner], axis=0) ** 2

    miss = -error(rule, spectrum, weight, next_degree)
    size = float(weight @ next_degree(spectrum.numpy()))
    if size > 1e-15:  # otherwise the miss is below the rounding of the integrals
        assert miss > 1e-3 * size
    else:
        assert name == "clustered"


@steps_
@spectra
def test_averaged_rule_contains_the_shorter_gauss_rule(name, steps):
    spectrum = SPECTRA[name]
    matrix, weight = run(spectrum, steps)
    nodes, weights = rule = averaged_gauss(matrix)
    assert len(nodes) == len(weights) == 2 * steps - 1
    assert (weights >= 0).all()
    assert_close(weights.sum(), 1.0)
    if steps > 1:
        assert_close(nodes[1::2], gauss(matrix.head(steps - 1))[0])
    for degree in range(2 * steps + (steps > 1)):
        assert abs(error(rule, spectrum, weight, lambda x, k=degree: x**k)) <= tolerance(torch.float64)


def test_averaged_rule_by_hand():
    nodes, weights = averaged_gauss(Tridiagonal(np.array([0.0, 0.0]), np.array([1.0]), 2.0, False))
    assert_close(nodes, [-(5**0.5), 0.0, 5**0.5])
    assert_close(weights, [0.1, 0.8, 0.1])


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (3, 1), (4, 2), (11, 5), (16, 8), (35, 8)])
def test_steady_rule_is_the_mean_of_the_last_averaged_rules(steps, count):
    spectrum = SPECTRA["signed"]
    matrix, weight = run(spectrum, steps)
    nodes, weights = rule = steady_gauss(matrix)
    assert len(nodes) == len(weights) == sum(2 * (steps - back) - 1 for back in range(count))
    assert (weights >= 0).all()
    assert_close(weights.sum(), 1.0)

    def value(rule):
        return rule[1] @ (0.01 / (0.01 + np.abs(rule[0])))

    assert_close(value(rule), np.mean([value(averaged_gauss(matrix.head(steps - back))) for back in range(count)]))
    for degree in range(2 * (steps - count + 1)):
        assert abs(error(rule, spectrum, weight, lambda x, k=degree: x**k)) <= tolerance(torch.float64)


def test_steady_rule_of_many_steps_is_one_averaged_rule():
    matrix = Tridiagonal(np.zeros(600), np.ones(599), 1.0, exhausted=False)
    for steady, averaged in zip(steady_gauss(matrix), averaged_gauss(matrix), strict=True):
        assert_close(steady, averaged)


def test_steady_rule_moves_less_from_step_to_step_in_a_narrow_bulk():
    generator = np.random.default_rng(0)
    spectrum = torch.from_numpy(np.concatenate([10 / np.arange(1, 31), 0.003 * generator.standard_normal(1500)]))
    matrices = [run(spectrum, 30, seed)[0] for seed in range(10)]

    def moved(rule):
        rules = [[rule(matrix.head(steps)) for steps in range(18, 31)] for matrix in matrices]
        return np.abs(np.diff([[w @ (0.003 / (0.003 + np.abs(x))) for x, w in row] for row in rules])).mean()

    assert moved(steady_gauss) < min(moved(gauss), moved(averaged_gauss)) / 2


def test_by_hand():
    matrix = Tridiagonal(np.array([1.0, 1.0]), np.array([1.0]), 0.5, False)
    nodes, weights = gauss(matrix)
    assert_close(nodes, [0.0, 2.0], scale=1.0)
    assert_close(weights, [0.5, 0.5])
    nodes, weights = gauss_radau(Tridiagonal(np.array([2.0]), np.array([]), 1.0, False), 1.0)
    assert_close(nodes, [1.0, 3.0])
    assert_close(weights, [0.5, 0.5])


def test_one_step():
    nodes, weights = gauss(Tridiagonal(np.array([0.25]), np.array([]), 0.5, False))
    assert (nodes.tolist(), weights.tolist()) == ([0.25], [1.0])


def test_exhausted_runs_need_no_prescribed_node():
    matrix = Tridiagonal(np.array([1.0, 1.0]), np.array([1.0]), 0.0, True)
    for node in (-1.0, 0.0):
        for plain, prescribed in zip(gauss(matrix), gauss_radau(matrix, node), strict=True):
            assert np.array_equal(plain, prescribed)
    for plain, averaged in zip(gauss(matrix), averaged_gauss(matrix), strict=True):
        assert np.array_equal(plain, averaged)


@pytest.mark.parametrize(
    ("alpha", "beta", "node"),
    [([0.5], [], 0.5), ([1.0, 1.0], [1.0], 0.0), ([1.0, 1.0], [1.0], 2.0), ([0.0, 0.0, 0.0], [1.0, 1.0], 0.0)],
)
def test_the_gauss_rule_that_has_the_node_already_is_the_radau_rule(alpha, beta, node):
    matrix = Tridiagonal(np.array(alpha), np.array(beta), 1.0, False)
    nodes, weights = gauss_radau(matrix, node)
    assert abs(nodes - node).min() <= 1e-15
    assert np.array_equal(weights, gauss(matrix)[1])


@pytest.mark.parametrize("steps", [10, 40])
def test_full_dimension_is_the_measure_itself(steps):
    spectrum = torch.linspace(-2, 3, steps, dtype=torch.float64)
    matrix, weight = run(spectrum, steps)
    nodes, weights = gauss(matrix)
    assert_close(nodes, spectrum)
    assert_close(weights, weight)


# --------------------------------------------------------------------------------------------------- bounds


@st.composite
def psd_spectra(draw):
    """Spectra with zeros, spikes, clusters and power laws; the largest eigenvalue is 1."""
    size = draw(st.integers(2, 40))
    shape = draw(st.sampled_from(["uniform", "power law", "spikes", "cluster", "listed"]))
    if shape == "uniform":
        values = np.linspace(0, 1, size)
    elif shape == "power law":
        values = np.arange(1.0, size + 1) ** -draw(st.floats(0.2, 6))
    elif shape == "spikes":
        values = np.full(size, draw(st.floats(0, 1e-2)))
        values[: draw(st.integers(1, min(size, 5)))] = 1.0
    elif shape == "cluster":
        values = np.concatenate([np.ones(1), draw(st.floats(0, 0.9)) + 1e-7 * np.arange(size - 1.0)])
    else:
        values = np.array(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    values[len(values) - draw(st.integers(0, size - 1)) :] = 0.0
    return values / max(values.max(), 1e-300) if values.max() > 0 else values


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(psd_spectra(), st.floats(-4, 1), st.integers(0, 1000), st.sampled_from(["full", "none"]))
def test_gauss_and_radau_enclose_the_truth_and_close_in(values, exponent, seed, mode):
    c = 10.0**exponent
    start = random(len(values), seed=seed)
    weight = ((start / start.norm()) ** 2).numpy()
    truth = float(weight @ (c / (c + values)))
    slack = tolerance(torch.float64)
    whole = lanczos(Dense(torch.from_numpy(values)), start, len(values), mode)
    below, above = 0.0, 1.0
    for steps in range(1, whole.steps + 1):
        matrix = whole.head(steps)
        bounds = []
        for rule in (gauss, partial(gauss_radau, node=0.0)):
            nodes, weights = rule(matrix)
            assert_close(weights.sum(), 1.0)
            bounds.append(float(weights @ (c / (c + nodes))))
        lower, upper = bounds
        assert below - slack <= lower <= truth + slack
        assert truth - slack <= upper <= above + slack
        below, above = max(below, lower), min(above, upper)
    if whole.exhausted:
        assert_close(below, truth)
        assert_close(above, truth)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(psd_spectra(), st.integers(0, 40), st.floats(-4, 1), st.integers(0, 1000))
def test_even_moments_enclose_even_functions_of_indefinite_spectra(values, negative, exponent, seed):
    values = np.where(np.arange(len(values)) % 3 < negative % 3, -values, values)
    c = 10.0**exponent
    start = random(len(values), seed=seed)
    weight = ((start / start.norm()) ** 2).numpy()
    truth, slack = float(weight @ (c / (c + np.abs(values)))), tolerance(torch.float64)
    whole = lanczos(Dense(torch.from_numpy(values)), start, len(values))
    for steps in range(1, whole.steps + 1):
        below, above = even_bracket(whole.head(steps))
        for _, weights in (below, above):
            assert_close(weights.sum(), 1.0)
        low, high = (float(weights @ (c / (c + nodes))) for nodes, weights in (below, above))
        assert low - slack <= truth <= high + slack
    if whole.exhausted:
        assert_close((low, high), (truth, truth))


def test_even_moments_by_hand():
    (nodes, weights), (wider, shares) = even_bracket(Tridiagonal(np.array([3.0]), np.array([]), 4.0, False))
    assert (nodes.tolist(), weights.tolist()) == ([5.0], [1.0])
    assert (wider.tolist(), shares.tolist()) == ([0.0], [1.0])


def test_bounds_close_at_the_known_rate():
    spectrum, c = torch.linspace(0, 1, 400, dtype=torch.float64), 0.01
    gaps = []
    for steps in (10, 20, 30):
        matrix, _ = run(spectrum, steps)
        lower, upper = (float(w @ (c / (c + x))) for x, w in (gauss(matrix), gauss_radau(matrix, 0.0)))
        gaps.append(upper - lower)
    assert gaps[1] / gaps[0] < np.exp(-4 * 10 * c**0.5) * 2
    assert gaps[2] / gaps[1] < np.exp(-4 * 10 * c**0.5) * 2
