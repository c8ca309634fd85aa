"""Hessian and Gauss-Newton products against dense float64 matrices."""

import pytest
import torch
from helpers import CASES, Loader, assert_close, mlp, random, reference, same, seeded, snapshot
from torch import nn
from torch.nn import functional

from estimators import GGN, L1, L2, Hessian, Objective, UserError
from estimators.forwards import Forwards
from estimators.substitution import substituted_functions

OPERATORS = {"hessian": Hessian, "ggn": GGN}
kinds = pytest.mark.parametrize("kind", OPERATORS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def make(name, kind, dtype=torch.float64, memory=2 << 30, **options):
    case = CASES[name]
    objective = Objective(case.model(dtype), case.loader(dtype), case.loss_fn, **(case.options | options))
    return OPERATORS[kind](objective, memory)


def columns(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


@dtypes
@kinds
@pytest.mark.parametrize("name", CASES)
def test_every_column(name, kind, dtype):
    operator = make(name, kind, dtype)
    result = columns(operator)
    assert result.dtype == operator.dtype == dtype
    assert operator.shape == tuple(result.shape)
    assert_close(result, reference(name, dtype)[kind == "ggn"], dtype)


@kinds
@pytest.mark.parametrize("name", CASES)
def test_symmetric(name, kind):
    operator = make(name, kind)
    u, v = random(2, operator.shape[0])
    assert_close(u @ (operator @ v), v @ (operator @ u))


@pytest.mark.parametrize("name", CASES)
def test_ggn_is_positive_semidefinite(name):
    eigenvalues = torch.linalg.eigvalsh(columns(make(name, "ggn")))
    assert eigenvalues[-1] > 0
    assert_close(eigenvalues.clamp(max=0), torch.zeros_like(eigenvalues), scale=float(eigenvalues[-1]))


@pytest.mark.parametrize("name", ["linear", "tokens"])
def test_ggn_of_a_linear_model_is_the_hessian(name):
    assert_close(columns(make(name, "ggn")), columns(make(name, "hessian")))


def test_ggn_of_a_nonlinear_model_is_not_the_hessian():
    difference = columns(make("ragged", "ggn")) - columns(make("ragged", "hessian"))
    assert float(difference.abs().max()) > 1e-3


@dtypes
@kinds
def test_l2_shifts_and_l1_does_not(kind, dtype):
    plain = reference("ragged", dtype)[kind == "ggn"]
    assert_close(columns(make("ragged", kind, dtype, penalty=L1(0.3))), plain, dtype)
    shifted = plain + 0.3 * torch.eye(len(plain), dtype=torch.float64)
    assert_close(columns(make("ragged", kind, dtype, penalty=L2(0.3))), shifted, dtype)


@kinds
@pytest.mark.parametrize("name", ["ragged", "scalar mean", "batch norm", "tied", "idle layer"])
def test_kept_and_rebuilt_graphs_give_equal_bits(name, kind):
    kept, rebuilt = make(name, kind), make(name, kind, memory=0)
    short = make(name, kind, memory=1)
    for seed in range(3):
        v = random(kept.shape[0], 2, seed=seed)
        result = kept @ v
        assert torch.equal(result, rebuilt @ v)
        assert torch.equal(result, short @ v)


@kinds
def test_kept_graphs_need_no_further_pass(kind):
    case = CASES["ragged"]
    for memory, passes in ((2 << 30, 1), (1, 3), (0, 3)):
        loader = Loader(case.loader())
        operator = OPERATORS[kind](Objective(case.model(), loader), memory)
        for _ in range(3):
            operator.matmat(random(operator.shape[0], 2))
        assert loader.passes == passes
        assert (operator.passes, operator.products) == (3, 6)


@pytest.mark.parametrize("first", ["hessian", "ggn"])
@pytest.mark.parametrize("name", ["ragged", "scalar mean", "batch norm", "tied"])
def test_two_curvatures_share_their_forward_passes(name, first):
    case = CASES[name]
    loader = Loader(case.loader())
    objective = Objective(case.model(), loader, case.loss_fn)
    forwards = Forwards(objective)
    for kind in (first, "ggn" if first == "hessian" else "hessian"):
        v = random(objective.dimension, 2)
        assert torch.equal(OPERATORS[kind](objective, forwards=forwards) @ v, make(name, kind) @ v)
    assert loader.passes == 1


@kinds
def test_forward_passes_are_kept_where_the_products_do_not_fit(kind):
    loader = Loader(CASES["ragged"].loader())
    objective = Objective(CASES["ragged"].model(), loader)
    room = sum(forward.bytes for forward in Forwards(objective))
    operator = OPERATORS[kind](objective, room)
    v, expected = random(objective.dimension), make("ragged", kind)
    for _ in range(3):
        assert torch.equal(operator @ v, expected @ v)
    assert operator._graphs is None
    assert loader.passes == 2  # the first one measured the room


@kinds
@pytest.mark.parametrize("change", ["weight", "bias", "buffer"])
def test_products_follow_a_model_that_was_trained_on(kind, change):
    case = CASES["batch norm"]
    model = case.model()
    operator = OPERATORS[kind](Objective(model, case.loader(), case.loss_fn))
    v = random(operator.shape[0])
    before = operator @ v
    with torch.no_grad():
        {"weight": model.first.weight, "bias": model.head.bias, "buffer": model.norm.running_var}[change].mul_(1.5)
    after = operator @ v
    assert torch.equal(after, OPERATORS[kind](Objective(model, case.loader(), case.loss_fn)) @ v)
    assert float((after - before).abs().max()) > 1e-6
    assert torch.equal(after, operator @ v)


@kinds
def test_matmat_is_the_columns_of_matvec(kind):
    operator = make("ragged", kind)
    vectors = random(operator.shape[0], 4)
    together = operator.matmat(vectors)
    assert torch.equal(together, torch.stack([operator.matvec(v) for v in vectors.unbind(1)], dim=1))
    assert torch.equal(together, operator @ vectors)
    assert torch.equal(together[:, 0], operator @ vectors[:, 0])
    assert torch.equal(operator @ torch.zeros(operator.shape[0]).double(), torch.zeros(operator.shape[0]).double())


@kinds
def test_vectors_of_another_type_are_converted(kind):
    operator = make("ragged", kind, torch.float32)
    v = random(operator.shape[0])
    assert torch.equal(operator @ v, operator @ v.float())


@kinds
def test_products_carry_no_graph_and_work_without_grad_mode(kind):
    operator = make("ragged", kind)
    v = random(operator.shape[0])
    expected = operator @ v
    assert not (operator @ v.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        assert torch.equal(make("ragged", kind) @ v, expected)
        assert torch.equal(make("ragged", kind, memory=0) @ v, expected)


@kinds
def test_layer_without_influence(kind):
    case = CASES["idle layer"]
    rows = columns(make("idle layer", kind))
    used = 3 * 4
    assert not rows[used : used + 4].any()
    assert not rows[:, used : used + 4].any()
    alone = OPERATORS[kind](Objective(case.model(), case.loader(), parameters="idle.*", penalty=L2(0.5)))
    assert torch.equal(columns(alone), 0.5 * torch.eye(6).double())


@kinds
def test_loss_without_curvature(kind):
    model = seeded(lambda: nn.Linear(3, 2))
    operator = OPERATORS[kind](Objective(model, [(random(4, 3),)], lambda model, batch: model(batch[0]).sum(1)))
    assert not columns(operator).any()


@kinds
def test_weights_frozen_by_the_user(kind):
    case = CASES["ragged"]
    model = case.model().requires_grad_(False)
    operator = OPERATORS[kind](Objective(model, case.loader()))
    assert_close(columns(operator), reference("ragged", torch.float64)[kind == "ggn"])
    assert not any(p.requires_grad for p in model.parameters())


@kinds
@pytest.mark.parametrize("shape", [(34,), (36,), (35, 1), ()])
def test_wrong_vectors(kind, shape):
    operator = make("ragged", kind)
    assert operator.shape == (35, 35)
    with pytest.raises(UserError, match=r"vector: expected shape \(35,\)"):
        operator.matvec(torch.zeros(shape))


@kinds
@pytest.mark.parametrize("shape", [(35,), (34, 2), (2, 35), (35, 1, 1)])
def test_wrong_matrices(kind, shape):
    with pytest.raises(UserError, match=r"vectors: expected shape \(35, K\)"):
        make("ragged", kind).matmat(torch.zeros(shape))


@kinds
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_undefined_products(kind, bad):
    case = CASES["ragged"]
    batches = case.loader()
    batches[1][0][0, 0] = bad
    operator = OPERATORS[kind](Objective(case.model(), batches))
    with pytest.raises(UserError, match="NaN or infinite"):
        operator @ random(operator.shape[0])


def test_ggn_needs_the_output_of_a_call():
    loss = lambda model, batch: model.forward(batch[0]).sum(1)  # noqa: E731
    objective = Objective(seeded(mlp), CASES["ragged"].loader(), loss)
    with pytest.raises(UserError, match="got 0 calls of the model"):
        GGN(objective) @ random(objective.dimension)


@kinds
@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_model_is_left_as_it_was(kind, memory):
    case = CASES["batch norm"]
    model = case.model()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.norm.register_forward_hook(lambda module, arguments, output: None)
    before = snapshot(model)
    operator = OPERATORS[kind](Objective(model, case.loader(), case.loss_fn), memory)
    for seed in range(2):
        operator @ random(operator.shape[0], seed=seed)
    assert same(before, snapshot(model))
    assert before["training"] == [True, True, False, True]


@kinds
def test_model_is_left_as_it_was_when_the_loss_raises(kind):
    case = CASES["batch norm"]
    model = case.model()
    model.head.eval()
    before = snapshot(model)
    modes = []

    def loss(model, batch):
        values = case.criterion(model(batch[0]), batch[1])
        modes.append([module.training for module in model.modules()])
        if len(modes) == 2:
            raise RuntimeError("boom")
        return values

    operator = OPERATORS[kind](Objective(model, case.loader(), loss))
    with pytest.raises(UserError, match=r"batch 1 .*evaluation mode: RuntimeError: boom"):
        operator @ random(operator.shape[0])
    assert modes == [[False] * 4] * 2
    assert same(before, snapshot(model))
    assert_close(columns(operator), reference("batch norm", torch.float64)[kind == "ggn"])


def test_buffers_that_the_forward_pass_writes():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    model = seeded(Counting)
    before = snapshot(model)
    objective = Objective(model, CASES["idle layer"].loader())
    assert objective.value() == objective.value()
    assert torch.equal(columns(Hessian(objective, 0)), columns(Hessian(objective)))
    assert same(before, snapshot(model))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm2d, (5, 3, 4, 4))])
def test_batch_norm_in_evaluation_mode_is_the_same_function_as_an_affine_map(norm, shape, affine):
    layer = norm(3, affine=affine, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    layer(x)  # running statistics that are not those of x
    layer.eval()
    expected = layer(x), torch.autograd.functional.jacobian(layer, x)
    with substituted_functions(layer):
        torch.testing.assert_close((layer(x), torch.autograd.functional.jacobian(layer, x)), expected)
        assert torch.equal(layer.train()(x), functional.batch_norm(x, None, None, layer.weight, layer.bias, True))
