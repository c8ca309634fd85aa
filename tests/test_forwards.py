"""Forward passes: shared, kept where they fit, in the precision asked for, and counted in bytes."""

import copy

import pytest
import torch
from helpers import CASES, Loader, assert_close, random, reference, same, seeded, snapshot
from torch import nn

from estimators import GGN, Hessian, Objective, UserError, lanczos
from estimators.forwards import Forwards, SavedBytes
from estimators.vectors import flatten
from pruning_limits import predict_limit

W = torch.float64
OPERATORS = {"hessian": Hessian, "ggn": GGN}


kinds = pytest.mark.parametrize("kind", OPERATORS)


PARTS = ["ragged", "batch norm", "grouped", "dot product attention"]


@kinds
@pytest.mark.parametrize("name", PARTS)
def test_bfloat16_models(name, kind):
    exact, low = (
        OPERATORS[kind](Objective(CASES[name].model(dtype), CASES[name].loader(dtype), CASES[name].loss_fn))
        for dtype in (torch.float32, torch.bfloat16)
    )
    v = random(exact.shape[0], 3)
    product = low @ v
    assert product.dtype == low.dtype == torch.float32
    assert 0 < float((product - exact @ v).norm() / (exact @ v).norm()) < 0.1
    run = lanczos(low, v[:, 0], 4)
    assert run.basis.dtype == torch.float32
    assert_close(run.basis @ run.basis.T, torch.eye(4), torch.float32)


@kinds
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_products_in_bfloat16(name, kind, memory):
    case = CASES[name]
    objective = Objective(case.model(torch.float32), case.loader(torch.float32), case.loss_fn)
    before = snapshot(objective.model)
    exact = OPERATORS[kind](objective)
    mixed = OPERATORS[kind](objective, memory, precision="bfloat16")
    v = random(exact.shape[0], 3)
    product = mixed @ v
    assert torch.equal(product, mixed @ v)
    assert product.dtype == mixed.dtype == torch.float32
    assert 1e-5 < float((product - exact @ v).norm() / (exact @ v).norm()) < 0.1
    assert torch.equal(exact @ v, OPERATORS[kind](objective, precision="full") @ v)
    assert same(before, snapshot(objective.model))


def test_a_prediction_in_bfloat16(tiny):
    model, batches = copy.deepcopy(tiny[0]).float(), [(x.float(), y) for x, y in tiny[1]]
    options = {"epsilon": 0.05, "progress": False}
    full, mixed = (predict_limit(model, batches, precision=precision, **options) for precision in ("full", "bfloat16"))
    assert 0 < abs(full.sparsity - mixed.sparsity) < 0.01
    assert full.settings.precision == "full"
    assert mixed.settings.precision == "bfloat16"
    assert (full.objective, full.achieved) == (mixed.objective, mixed.achieved)  # passed in the model's own precision


def test_unfit_precision(tiny):
    objective = Objective(*tiny)
    with pytest.raises(UserError, match="precision: expected 'full' or 'bfloat16', got 'half'"):
        Hessian(objective, precision="half")
    with pytest.raises(UserError, match="precision: 'bfloat16' needs a float32 model"):
        GGN(objective, precision="bfloat16")
    with pytest.raises(UserError, match="precision: expected one of full, bfloat16, got 'half'"):
        predict_limit(*tiny, precision="half")


def test_saved_bytes_count_every_storage_once():
    w, x = random(4, 4).requires_grad_(), random(8, 4)
    counter = SavedBytes(frozenset([w.untyped_storage().data_ptr()]))
    with counter.counting():
        y = torch.tanh(x @ w)  # saves x, w, which is known, and its own result
        z = y * y[:4].mean()  # saves y once more
    assert counter.bytes == (x.numel() + y.numel() + 1) * 8
    z.sum().backward()  # what was packed can be unpacked
    assert w.grad is not None


def test_batches_and_losses_are_those_of_the_objective():
    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    forwards = list(Forwards(objective))
    assert_close(sum(forward.loss.item() for forward in forwards) / objective.samples, reference("ragged", W)[3])
    gradients = [torch.autograd.grad(forward.loss, forward.weights, retain_graph=True) for forward in forwards]
    total = sum(flatten(gradient) for gradient in gradients) / objective.samples
    assert_close(total, reference("ragged", W)[2])
    for forward, (x, _) in zip(forwards, case.loader(), strict=True):
        assert [tuple(output.shape) for output in forward.outputs] == [(len(x), 3)]


@pytest.mark.parametrize(("share", "passes"), [(1.0, 1), (0.5, 3), (0.0, 3)])
def test_batches_are_kept_where_they_fit_and_passed_anew_elsewhere(share, passes):
    case = CASES["ragged"]
    room = sum(forward.bytes for forward in Forwards(Objective(case.model(), case.loader())))
    loader = Loader(case.loader())
    forwards = Forwards(Objective(case.model(), loader), memory=int(share * room))
    first, *_, last = ([forward.loss for forward in forwards] for _ in range(3))
    assert loader.passes == passes
    assert forwards.keeping == (passes == 1)
    assert all((a is b) == (passes == 1) and torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_a_written_weight_and_a_forgotten_pass_ask_for_new_ones():
    case = CASES["ragged"]
    model = case.model()
    forwards = Forwards(Objective(model, case.loader()))
    before = next(iter(list(forwards)))
    with torch.no_grad():
        model[0].weight.mul_(2)
    after = next(iter(list(forwards)))
    assert after.loss.item() != before.loss.item()
    forwards.forget()
    assert next(iter(list(forwards))) is not after


class Transformed(nn.Module):
    """A model that differentiates inside by torch.func, which allows no hooks around it."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        slopes = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(self.inner(row)).sum()))(x)
        return self.last(torch.tanh(self.inner(x)) + slopes)


class Sparse(Transformed):
    """A model whose graph saves a sparse tensor."""

    def forward(self, x):
        links = torch.eye(5, dtype=x.dtype).to_sparse()
        return self.last(torch.sparse.mm(links, torch.tanh(self.inner(x)).T).T)


class Written(Transformed):
    """The same as what ``Transformed`` and ``Sparse`` compute, without either."""

    def __init__(self, slopes):
        super().__init__()
        self.slopes = slopes

    def forward(self, x):
        hidden = torch.tanh(self.inner(x))
        return self.last(hidden + self.slopes * ((1 - hidden.square()) @ self.inner.weight))


@kinds
@pytest.mark.parametrize("model", [Transformed, Sparse])
def test_graphs_whose_memory_cannot_be_counted(kind, model):
    data = [(random(8, 5), torch.arange(8) % 3)]
    vector = random(40)
    first, second = (seeded(build).double() for build in (model, lambda: Written(model is Transformed)))
    products = [OPERATORS[kind](Objective(network, data)) @ vector for network in (first, second)]
    assert_close(*products)


@kinds
def test_where_the_caller_allows_no_hooks(kind):
    objective, vector = Objective(CASES["ragged"].model(), CASES["ragged"].loader()), random(35)
    usual = OPERATORS[kind](objective) @ vector
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        assert same(OPERATORS[kind](objective) @ vector, usual)
