"""Agreement with independent libraries on the same models and data."""

import copy

import numpy as np
import pytest
import torch
from helpers import CASES, Attention, assert_close, classification, mlp, random, regression, seeded
from torch import nn

from estimators import GGN, Hessian, Objective, lanczos, spectral_measure
from estimators.parameters import choose_parameters
from estimators.vectors import flatten, unflatten

curvlinops_warnings = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
pyhessian_warnings = pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))


MODELS = {
    "mlp": (mlp, classification(4), nn.CrossEntropyLoss),
    "conv net": (convolutional, classification(1, 4, 4), nn.CrossEntropyLoss),
    "batch norm": (CASES["batch norm"].build, classification(1, 4, 4), nn.CrossEntropyLoss),
    "regression": (mlp, regression(4, 3), nn.MSELoss),
}
models = pytest.mark.parametrize("name", MODELS)


def problem(name, dtype=torch.float64):
    build, batches, criterion = MODELS[name]
    cast = [tuple(t.to(dtype) if t.is_floating_point() else t for t in batch) for batch in batches()]
    return seeded(build).to(dtype), cast, criterion()


def objective_of(model, batches, criterion, parameters="*"):
    return Objective(model, batches, lambda model, batch: criterion(model(batch[0]), batch[1]), parameters=parameters)


# -------------------------------------------------------------------------------------------------- curvlinops


def curvlinops_product(name, kind, dtype, parameters, vector):
    curvlinops = pytest.importorskip("curvlinops")
    model, batches, criterion = problem(name, dtype)
    chosen = list(choose_parameters(model.eval(), parameters).values())
    library = {Hessian: curvlinops.HessianLinearOperator, GGN: curvlinops.GGNLinearOperator}[kind]
    operator = library(model, criterion, chosen, batches, check_deterministic=False)
    return flatten(operator @ unflatten(vector, chosen))


@curvlinops_warnings
@models
@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("parameters", [None, "*"], ids=["weights", "all"])
def test_products_agree_with_curvlinops(name, kind, dtype, parameters):
    operator = kind(objective_of(*problem(name, dtype), parameters))
    vector = random(operator.shape[0]).to(dtype)
    expected = curvlinops_product(name, kind, dtype, parameters, vector)
    assert_close(operator @ vector, expected, dtype)


@curvlinops_warnings
def test_attention_agrees_with_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    model, batches = seeded(Attention).eval(), classification(3, 4)()
    vector = random(sum(p.numel() for p in model.parameters()))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        library = curvlinops.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False
        )
        expected = flatten(library @ unflatten(vector, list(model.parameters())))
    assert_close(Hessian(Objective(model, batches, parameters="*")) @ vector, expected)


# --------------------------------------------------------------------------------------------------- PyHessian


@pytest.fixture
def double():
    """Make float64 the type of PyHessian's random vectors, and seed them."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(before)


def pyhessian_of(name, dataloader):
    pyhessian = pytest.importorskip("pyhessian")
    model, batches, criterion = problem(name)
    if dataloader:
        return pyhessian.hessian(copy.deepcopy(model), criterion, dataloader=batches, cuda=False), (
            model,
            batches,
            criterion,
        )
    return pyhessian.hessian(copy.deepcopy(model), criterion, data=batches[0], cuda=False), (
        model,
        batches[:1],
        criterion,
    )


@pyhessian_warnings
@models
@pytest.mark.parametrize("dataloader", [False, True], ids=["one batch", "loader"])
def test_largest_eigenvalue_agrees_with_pyhessian(double, name, dataloader):
    library, parts = pyhessian_of(name, dataloader)
    (expected,), _ = library.eigenvalues(maxIter=2000, tol=1e-10)
    operator = Hessian(objective_of(*parts))
    largest = max(np.linalg.eigvalsh(dense(operator)), key=abs)
    assert_close(expected, largest, torch.float32)  # as far as power iteration converges
    run = lanczos(operator, random(operator.shape[0]), operator.shape[0])
    t = np.diag(run.alpha) + np.diag(run.beta, 1) + np.diag(run.beta, -1)
    assert_close(max(np.linalg.eigvalsh(t), key=abs), largest)


@pyhessian_warnings
@models
def test_trace_agrees_with_pyhessian(double, name):
    library, parts = pyhessian_of(name, dataloader=False)
    samples = np.array(library.trace(maxIter=200, tol=-np.inf))
    operator = Hessian(objective_of(*parts))
    truth, size = np.trace(dense(operator)), operator.shape[0]
    assert len(samples) == 200
    assert abs(samples.mean() - truth) < 4 * samples.std(ddof=1) / len(samples) ** 0.5
    value, error = spectral_measure(operator, probes=50, steps=3).moment(1)
    assert abs(size * value - truth) < 4 * size * error


def dense(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype)).double().numpy()
