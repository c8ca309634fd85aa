"""The spectral measure: exact cases, sampling error and coverage."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import CASES, Dense, assert_close, random, tolerance, with_spectrum

from estimators import (
    GGN,
    Hessian,
    Objective,
    SpectralMeasure,
    UserError,
    averaged_gauss,
    gauss,
    gauss_radau,
    lanczos,
    measure_of,
    spectral_measure,
    sphere_probes,
)
from pruning_limits.plotting import save, spectrum_figure

RAMP = torch.linspace(-1, 2, 30, dtype=torch.float64)
FUNCTIONS = {
    "identity": lambda x: x,
    "square": lambda x: x**2,
    "resolvent": lambda x: 0.1 / (0.1 + np.abs(x)),
    "step": lambda x: (x > 0.5).astype(float),
}


# --------------------------------------------------------------------------------------------- exact cases


@pytest.mark.parametrize("mode", ["full", "none"])
@pytest.mark.parametrize("steps", [30, 31, 10**6])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_full_dimension_is_exact_for_the_probes_drawn(function, steps, mode):
    operator = Dense(with_spectrum(RAMP))
    measure = spectral_measure(operator, probes=3, steps=steps, seed=5, reorthogonalise=mode)
    eigenvalues, vectors = torch.linalg.eigh(operator.matrix)
    weight = (vectors.T @ sphere_probes(operator, 3, seed=5)).square().mean(1)
    assert_close(weight.sum(), 1.0)
    assert_close(measure.integrate(function)[0], weight @ torch.from_numpy(function(eigenvalues.numpy())))
    assert operator.calls <= 30


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_full_dimension_on_a_network(kind, dtype):
    case = CASES["ragged"]
    operator = kind(Objective(case.model(dtype), case.loader(dtype)))
    dense = operator.matmat(torch.eye(35).to(dtype)).double()
    measure = spectral_measure(operator, probes=2, steps=99)
    probes = sphere_probes(operator, 2).double()
    for power in (1, 2, 3):
        expected = (probes * (torch.linalg.matrix_power(dense, power) @ probes)).sum(0).mean()
        assert_close(
            measure.moment(power)[0], expected, dtype, scale=float(torch.linalg.matrix_norm(dense, 2)) ** power
        )


@pytest.mark.parametrize("probes", [1, 7])
def test_multiple_of_the_identity_has_no_error(probes):
    measure = spectral_measure(Dense(torch.full((50,), -1.75).double()), probes, steps=10)
    value, error = measure.integrate(lambda x: x**3)
    assert_close(value, -(1.75**3))
    assert_close(error**2, 0.0, scale=value**2)
    assert [len(nodes) for nodes, _ in measure.rules] == [1] * probes


def test_moments_within_their_errors():
    matrix = with_spectrum(torch.arange(1, 201, dtype=torch.float64) ** -0.5)
    measure = spectral_measure(Dense(matrix), probes=10, steps=6, seed=1)
    value, error = measure.moment(0)
    assert_close(value, 1.0)
    assert_close(error**2, 0.0, scale=1.0)
    for order in range(1, 6):
        value, error = measure.moment(order)
        truth = float(torch.linalg.matrix_power(matrix, order).trace()) / 200
        assert 0 < error < 0.5 * truth
        assert abs(value - truth) < 4 * error


def test_extra_probes_and_weights():
    measure = spectral_measure(Dense(RAMP), probes=3, steps=8)
    assert measure.probes == 3
    assert measure.dimension == 30
    assert measure.nodes.shape == measure.weights.shape == (24,)
    assert_close(measure.weights.sum(), 1.0)
    assert (measure.weights >= 0).all()
    assert measure.largest == measure.nodes.max() <= 2.0 + tolerance(torch.float64)


@pytest.mark.parametrize(
    ("rule", "nodes"),
    [(gauss, 6), (averaged_gauss, 11), (partial(gauss_radau, node=-1.5), 7)],
    ids=["gauss", "averaged", "radau"],
)
def test_measure_by_any_rule(rule, nodes):
    runs = [lanczos(Dense(RAMP), random(30, seed=seed), 6) for seed in range(2)]
    plain, other = measure_of(runs, 30), measure_of(runs, 30, rule)
    assert [len(points) for points, _ in other.rules] == [nodes, nodes]
    for order in range(12):
        assert_close(other.moment(order)[0], plain.moment(order)[0], scale=2.0**order)


# ------------------------------------------------------------------------------------------ standard errors


def scores(function, probes, seeds=200, steps=20):
    """Return (estimate - truth) / standard error for so many seeds on one matrix."""
    spectrum = torch.linspace(0.1, 1, 200, dtype=torch.float64)
    truth = function(spectrum.numpy()).mean()
    result = []
    for seed in range(seeds):
        value, error = spectral_measure(Dense(spectrum), probes, steps, seed).integrate(function)
        result.append((value - truth) / error)
    return np.array(result)


@pytest.mark.parametrize(
    ("function", "steps"),
    [(lambda x: x, 3), (lambda x: x**2, 3), (lambda x: 0.3 / (0.3 + x), 12)],
    ids=["identity", "square", "resolvent"],
)
@pytest.mark.parametrize(("probes", "low", "high"), [(1, 0.85, 1.15), (4, 0.65, 1.05)])
def test_coverage(function, steps, probes, low, high):
    z = scores(function, probes, steps=steps)
    assert (np.abs(z) < 4).all()
    assert low < np.sqrt((z**2).mean()) < high
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert 0.9 < (np.abs(z) < 2).mean() < 1


def test_error_of_a_single_probe_is_the_formula():
    eigenvalues, start = RAMP.numpy(), random(30)
    measure = measure_of([lanczos(Dense(RAMP), start, 30)], 30)
    weight = ((start / start.norm()) ** 2).numpy()
    mean, square = weight @ eigenvalues, weight @ eigenvalues**2
    assert_close(measure.moment(1), [mean, (2 / 32 * (square - mean**2)) ** 0.5])


def test_error_covers_probes_that_differ_by_more_than_the_formula_says():
    rules = tuple((np.array([center]), np.array([1.0])) for center in (1.0, 2.0, 4.0, 9.0))
    value, error = SpectralMeasure(rules, 10**9).moment(1)
    assert_close([value, error], [4.0, np.std([1.0, 2.0, 4.0, 9.0], ddof=1) / 2])


def test_error_falls_with_the_root_of_the_probes():
    single, many = (spectral_measure(Dense(torch.linspace(0, 1, 300).double()), k, 4).moment(1)[1] for k in (1, 64))
    assert 0.8 < 8 * many / single < 1.3


# -------------------------------------------------------------------------------------------------- figure


@pytest.mark.parametrize(
    "eigenvalues",
    [[0.0], [0.0, 0.0], [3.0], [-2.0, -1.0], [1e-30, 2e-30], [1e20, -1.0], [0.0, 1e-8, 5.0], RAMP.tolist()],
    ids=str,
)
def test_figure_of_any_spectrum(eigenvalues, tmp_path):
    figure = spectrum_figure(SpectralMeasure.from_eigenvalues(eigenvalues), "title")
    save(figure, tmp_path / "spectrum.png")
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(",")[0] for title in titles] == ["Density", "Density", "Tails", "Cumulative spectrum"]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "asinh", "log", "asinh"]
    cumulative = figure.axes[3].get_lines()[0].get_ydata()
    assert cumulative[-1] == pytest.approx(1.0)
    assert (np.diff(cumulative) >= 0).all()


# -------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("steps", [0, -1])
def test_too_few_steps(steps):
    with pytest.raises(UserError, match="steps: expected at least 1"):
        spectral_measure(Dense(RAMP), steps=steps)


@pytest.mark.parametrize("probes", [0, -1])
def test_too_few_probes(probes):
    with pytest.raises(UserError, match="probes: expected at least 1"):
        spectral_measure(Dense(RAMP), probes=probes)


# --------------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_probes_are_unit_vectors_of_the_operator_type(dtype):
    probes = sphere_probes(Dense(RAMP.to(dtype)), 5)
    assert probes.shape == (30, 5)
    assert probes.dtype == dtype
    assert_close(probes.double().norm(dim=0), torch.ones(5), dtype)


def test_probe_k_does_not_depend_on_their_number():
    few, many = (spectral_measure(Dense(with_spectrum(RAMP)), k, 7, seed=3) for k in (2, 5))
    operator = Dense(RAMP)
    assert torch.equal(sphere_probes(operator, 2, 3), sphere_probes(operator, 5, 3)[:, :2])
    for short, long in zip(few.rules, many.rules[:2], strict=True):
        assert_close(short[0], long[0])
        assert_close(short[1], long[1])


def test_same_seed_same_bits_and_other_seed_other_probes():
    state = torch.get_rng_state()
    case = CASES["ragged"]

    def nodes(seed):
        return spectral_measure(Hessian(Objective(case.model(), case.loader())), 2, 9, seed).nodes

    first = nodes(4)
    assert np.array_equal(first, nodes(4))
    assert np.abs(first - nodes(5)).max() > 1e-3
    assert torch.equal(state, torch.get_rng_state())


def test_probes_are_uniform_on_the_sphere():
    probes = sphere_probes(Dense(torch.ones(5).double()), 4000, seed=2)
    second = probes @ probes.T / 4000
    assert float((second - torch.eye(5) / 5).abs().max()) < 4 * (8 / 175 / 4000) ** 0.5
    fourth = probes[0].pow(4).mean()
    assert abs(float(fourth) - 3 / 35) < 4 * (105 / (5 * 7 * 9 * 11) / 4000) ** 0.5
