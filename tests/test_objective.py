"""Value, gradient, samples and sub-samples of the objective, and what it says of bad input."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import (
    CASES,
    BatchNormNet,
    Loader,
    assert_close,
    classification,
    mlp,
    random,
    reference,
    same,
    seeded,
    shrinking,
    snapshot,
)
from torch import nn

from estimators import GGN, L1, L2, Hessian, Objective, UserError

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def make(name, dtype=torch.float64, **options):
    case = CASES[name]
    return Objective(case.model(dtype), case.loader(dtype), case.loss_fn, **(case.options | options))


def one_row(x, y):
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(y))]


# ------------------------------------------------------------------------------------------ value, gradient


@dtypes
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, dtype):
    objective = make(name, dtype)
    _, _, gradient, value = reference(name, dtype)
    assert_close(objective.value(), value, dtype)
    assert_close(objective.gradient(), gradient, dtype)
    assert objective.vector().dtype == objective.gradient().dtype == objective.dtype == dtype
    assert objective.vector().shape == (objective.dimension,)


@dtypes
@pytest.mark.parametrize("penalty", [L1(0.2), L2(0.2)], ids=repr)
def test_penalty_covers_biases_and_normalisation(penalty, dtype):
    case = CASES["batch norm"]
    objective = make("batch norm", dtype, penalty=penalty)
    weights = [p.detach().double() for p in case.model(dtype).parameters()]
    assert len(weights) == 5
    by_hand = sum(0.2 * w.abs().sum() if isinstance(penalty, L1) else 0.1 * (w * w).sum() for w in weights)
    _, _, gradient, value = reference("batch norm", dtype)
    assert_close(objective.value(), value + by_hand, dtype)
    chosen = objective.vector().double()
    slope = 0.2 * (chosen.sign() if isinstance(penalty, L1) else chosen)
    assert_close(objective.gradient(), gradient + slope, dtype)


@pytest.mark.parametrize("penalty", [L1(0.2), L2(0.2)], ids=repr)
def test_penalty_counts_tied_weights_once(penalty):
    case = CASES["tied"]
    parameters = {id(p): p for p in case.model().parameters()}.values()
    by_hand = penalty.value([p.detach() for p in parameters])
    assert len(parameters) == 3
    assert_close(make("tied", penalty=penalty).value() - make("tied").value(), by_hand)


def test_value_at_other_weights():
    objective = make("batch norm", penalty=L2(0.1))
    other = random(objective.dimension)
    model = copy.deepcopy(objective.model).eval()
    with torch.no_grad():
        model.first.weight.copy_(other[:27].view(3, 1, 3, 3))
        model.head.weight.copy_(other[27:].view(3, 12))
        losses = torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in objective.loader])
        expected = losses.mean() + sum(0.05 * (p * p).sum() for p in model.parameters())
    assert_close(objective.value(other), expected)
    assert_close(objective.value(objective.vector()), objective.value())
    assert abs(objective.value(other) - objective.value()) > 0.01


def test_gradient_is_the_slope_of_the_value():
    objective = make("ragged", penalty=L2(0.1))
    direction, step = random(objective.dimension), 1e-5
    ahead, behind = (objective.value(objective.vector() + s * step * direction) for s in (1, -1))
    assert_close((ahead - behind) / (2 * step), objective.gradient() @ direction, torch.float32)


def test_gradient_works_without_grad_mode():
    expected = reference("ragged", torch.float64)[2]
    with torch.no_grad():
        assert_close(make("ragged").gradient(), expected)


def test_gradient_of_a_layer_without_influence_is_that_of_the_penalty():
    case = CASES["idle layer"]
    objective = Objective(case.model(), case.loader(), penalty=L2(2.0), parameters="idle.weight")
    assert torch.equal(objective.gradient(), 2 * objective.vector())


def test_vector_is_a_copy():
    objective = make("ragged")
    before = objective.vector()
    objective.vector().zero_()
    assert torch.equal(objective.vector(), before)


@pytest.mark.parametrize("sizes", [(9,), (1,) * 9, (8, 1), (2, 3, 4)])
@pytest.mark.parametrize("criterion", ["none", "mean"])
def test_mean_does_not_depend_on_batch_sizes(sizes, criterion):
    case = CASES["ragged"]
    x, y = (torch.cat(parts) for parts in zip(*case.loader(), strict=True))
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction=criterion)  # noqa: E731
    objective = Objective(case.model(), batches, loss)
    hessian, ggn, gradient, value = reference("ragged", torch.float64)
    assert objective.samples == 9
    assert_close(objective.value(), value)
    assert_close(objective.gradient(), gradient)
    v = random(objective.dimension)
    assert_close(Hessian(objective) @ v, hessian @ v)
    assert_close(GGN(objective) @ v, ggn @ v)


def test_value_follows_a_model_that_was_trained_on():
    case = CASES["batch norm"]
    model = case.model()
    objective = Objective(model, case.loader(), penalty=L2(0.1))
    objective.value()
    with torch.no_grad():
        model.norm.running_mean.add_(1)
        model.head.weight.mul_(2)
    fresh = Objective(model, case.loader(), penalty=L2(0.1))
    assert objective.value() == fresh.value()
    assert torch.equal(objective.gradient(), fresh.gradient())


def test_default_loss_averages_positions_within_a_sample():
    x, y = random(3, 4, 2), torch.tensor([[0, 1], [2, 2], [1, 0]])
    model = seeded(lambda: nn.Conv1d(4, 3, 1))
    losses, sizes = Objective(model, [(x, y)]).sample_losses()
    by_hand = -model(x).detach().log_softmax(1).gather(1, y[:, None]).squeeze(1).mean(1)
    assert_close(losses, by_hand)
    assert sizes.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------------- sample losses


def test_sample_losses_one_by_one():
    objective = make("ragged")
    losses, sizes = objective.sample_losses()
    assert losses.shape == sizes.shape == (9,)
    assert sizes.tolist() == [1] * 9
    model = copy.deepcopy(objective.model).eval()
    rows = [row for batch in objective.loader for row in one_row(*batch)]
    assert_close(losses, torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in rows]))


def test_sample_losses_as_batch_means():
    losses, sizes = make("scalar mean").sample_losses()
    assert sizes.tolist() == [5, 3, 1]
    assert_close((losses * sizes).sum() / 9, reference("scalar mean", torch.float64)[3])


def test_sample_losses_leave_the_penalty_out():
    plain, penalised = make("ragged").sample_losses()[0], make("ragged", penalty=L2(5.0)).sample_losses()[0]
    assert torch.equal(plain, penalised)


def test_sample_losses_are_float64_without_graph():
    losses, _ = make("ragged", torch.float32).sample_losses()
    assert losses.dtype == torch.float64
    assert not losses.requires_grad


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_undefined_losses(bad):
    objective = Objective(seeded(mlp), CASES["ragged"].loader(), lambda model, batch: model(batch[0]).sum(1) + bad)
    with pytest.raises(UserError, match="loss_fn: 9 of 9 losses are NaN or infinite"):
        objective.sample_losses()


def test_one_undefined_loss():
    batches = CASES["ragged"].loader()
    batches[1][0][2] = torch.nan
    with pytest.raises(UserError, match="loss_fn: 1 of 9 losses"):
        Objective(seeded(mlp), batches).sample_losses()


def elsewhere(objective, sparsity=0.6):
    """Other weights, most of them zero and units among them, and the model with these weights loaded."""
    weights = random(objective.dimension, seed=3).to(objective.dtype)
    weights[torch.rand(len(weights), generator=torch.Generator().manual_seed(0)) < sparsity] = 0
    weights[: objective.dimension // 2] = 0
    model = copy.deepcopy(objective.model)
    parameters, start = dict(model.named_parameters()), 0
    with torch.no_grad():
        for name, weight in objective.chosen.items():
            parameters[name].copy_(weights[start : start + weight.numel()].view_as(weight))
            start += weight.numel()
    return weights, model


@dtypes
@pytest.mark.parametrize("name", ["ragged", "scalar mean", "dict", "batch norm", "tied"])
def test_sample_losses_at_other_weights(name, dtype):
    objective = make(name, dtype, penalty=L2(0.3))
    weights, model = elsewhere(objective)
    before = objective.sample_losses()[0]
    loaded = Objective(model, objective.loader, CASES[name].loss_fn, **CASES[name].options)
    losses, sizes = objective.sample_losses(weights)
    expected, expected_sizes = loaded.sample_losses()
    assert_close(losses, expected, dtype)
    assert torch.equal(sizes, expected_sizes)
    assert losses.dtype == torch.float64
    assert float((losses - before).abs().max()) > 1e-3
    assert torch.equal(objective.sample_losses()[0], before)
    mean = (losses * sizes).sum() / sizes.sum()
    assert_close(mean + objective.penalty_value(loaded.chosen), objective.value(weights))


def test_sample_losses_of_a_sub_sample_at_other_weights():
    objective = make("ragged")
    weights, model = elsewhere(objective)
    whole = Objective(model, objective.loader).sample_losses()[0]
    part = objective.subset(4, seed=2)
    losses, sizes = part.sample_losses(weights)
    assert_close(losses, whole[part.picked])
    assert sizes.tolist() == [1] * 4
    weighted = objective.subset(4, seed=2, scores=torch.arange(1.0, 10.0))
    assert_close(weighted.sample_losses(weights)[0], whole[weighted.picked] * weighted.factors)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_undefined_losses_at_other_weights_are_returned(bad):
    def loss(model, batch):
        values = model(batch[0]).sum(1)
        return torch.where((model[0].weight == 0).all(), bad, values)

    objective = Objective(seeded(mlp), CASES["ragged"].loader(), loss)
    assert objective.sample_losses()[0].isfinite().all()
    losses, _ = objective.sample_losses(torch.zeros_like(objective.vector()))
    torch.testing.assert_close(losses, torch.full((9,), bad, dtype=torch.float64), equal_nan=True)


# ------------------------------------------------------------------------------------------------- subset


def numbered(wrap=lambda x, i: (x, i), sizes=(5, 5, 5, 2)):
    ids = torch.arange(sum(sizes))
    x = ids[:, None].double().expand(-1, 4) / 10
    return [wrap(a, b) for a, b in zip(x.split(sizes), ids.split(sizes), strict=True)]


@dataclass(frozen=True)
class Numbered:
    x: torch.Tensor
    ids: torch.Tensor
    note: str = "shared"


@dataclass(frozen=True)
class NumberedRow:
    pair: Numbered


WRAPS = {
    "tuple": (lambda x, i: (x, i), lambda b: (b[0], b[1])),
    "list": (lambda x, i: [x, i], lambda b: (b[0], b[1])),
    "dict": (lambda x, i: {"x": x, "ids": i, "scale": 2.0, "none": None}, lambda b: (b["x"], b["ids"])),
    "dataclass": (Numbered, lambda b: (b.x, b.ids)),
    "nested": (lambda x, i: NumberedRow(Numbered(x, i)), lambda b: (b.pair.x, b.pair.ids)),
    "names": (lambda x, i: {"x": x, "ids": i, "name": [str(k) for k in i.tolist()]}, lambda b: (b["x"], b["ids"])),
    "shared": (lambda x, i: (x, i, torch.ones(3, 3)), lambda b: (b[0], b[1])),
}


def subset_of(wrap, samples, seed=0, **options):
    build, unpack = WRAPS[wrap]
    loss = lambda model, batch: model(unpack(batch)[0]).square().sum(1)  # noqa: E731
    return Objective(seeded(mlp), numbered(build), loss, **options).subset(samples, seed), unpack


@pytest.mark.parametrize("samples", [1, 2, 7, 16])
@pytest.mark.parametrize("wrap", WRAPS)
def test_subset_has_the_exact_count_without_replacement(wrap, samples):
    part, unpack = subset_of(wrap, samples)
    rows = [unpack(batch) for batch in part.loader]
    x, ids = (torch.cat(column) for column in zip(*rows, strict=True))
    assert len(ids) == len(set(ids.tolist())) == part.samples == samples
    assert torch.equal(x[:, 0], ids.double() / 10)
    losses, sizes = part.sample_losses()
    assert len(losses) == samples == int(sizes.sum())
    whole, _ = subset_of(wrap, 17)
    assert_close(losses, whole.sample_losses()[0][ids])


def test_subset_keeps_batch_types_and_what_does_not_count_samples():
    (batch,) = subset_of("dataclass", 6)[0].loader
    assert isinstance(batch, Numbered)
    assert batch.note == "shared"
    (batch,) = subset_of("dict", 6)[0].loader
    assert type(batch) is dict
    assert batch["scale"] == 2.0
    assert batch["none"] is None
    (batch,) = subset_of("names", 6)[0].loader
    assert batch["name"] == [str(k) for k in batch["ids"].tolist()]
    (batch,) = subset_of("shared", 6)[0].loader
    assert torch.equal(batch[2], torch.ones(3, 3))


def test_subset_is_seeded_and_leaves_the_global_state_alone():
    def ids(seed):
        part, unpack = subset_of("tuple", 8, seed)
        return torch.cat([unpack(batch)[1] for batch in part.loader]).tolist()

    state = torch.get_rng_state()
    first = ids(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert ids(1) == first
    assert len({tuple(ids(seed)) for seed in range(10)}) > 5
    torch.set_rng_state(state)


def test_subset_draws_uniformly():
    counts = torch.zeros(17)
    for seed in range(400):
        part, unpack = subset_of("tuple", 4, seed)
        for batch in part.loader:
            counts[unpack(batch)[1]] += 1
    expected = 400 * 4 / 17
    assert counts.sum() == 1600
    assert ((counts - expected).abs() < 4 * (expected * (1 - 4 / 17)) ** 0.5).all()


def test_subset_keeps_the_objective():
    part, _ = subset_of("tuple", 5, parameters="*.bias", penalty=L2(0.5))
    assert part.names == ("0.bias", "2.bias")
    assert part.penalty == L2(0.5)


def test_subset_of_everything_is_the_objective_itself():
    objective = make("ragged")
    assert objective.subset(9) is objective
    assert objective.subset(10**9) is objective


def test_subset_in_several_batches():
    sizes = (300, 300)
    batches = numbered(sizes=sizes)
    objective = Objective(seeded(mlp), batches, lambda model, batch: model(batch[0]).square().sum(1))
    part = objective.subset(599)
    assert [len(batch[0]) for batch in part.loader] == [300, 299]
    assert part.samples == 599 == len(part.sample_losses()[0])


@pytest.mark.parametrize("samples", [0, -1])
def test_subset_of_nothing(samples):
    with pytest.raises(UserError, match="samples: expected at least 1"):
        make("ragged").subset(samples)


def test_subset_does_not_change_with_the_loader():
    build, _ = WRAPS["tuple"]
    batches = numbered(build)
    part = Objective(seeded(mlp), batches, lambda model, batch: model(batch[0]).sum(1)).subset(10)
    before = part.value()
    batches.clear()
    assert part.value() == before


# ------------------------------------------------------------------------------------------- bad loaders


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 4).double(), torch.zeros(0, dtype=torch.long))]])
def test_empty_loader(batches):
    message = "loader: yields no samples"
    with pytest.raises(UserError, match=message):
        _ = Objective(seeded(mlp), batches).samples
    with pytest.raises(UserError, match=message):
        Objective(seeded(mlp), batches).value()
    with pytest.raises(UserError, match=message):
        Objective(seeded(mlp), batches).gradient()
    with pytest.raises(UserError, match=message):
        Hessian(Objective(seeded(mlp), batches)) @ random(35)


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_labels_out_of_range(label):
    batches = CASES["ragged"].loader()
    batches[1][1][0] = label
    objective = Objective(seeded(mlp), batches)
    for use in (objective.value, objective.gradient, objective.sample_losses, lambda: Hessian(objective) @ random(35)):
        with pytest.raises(UserError, match=rf"labels must be class indices in 0\.\.2, got .*{label}"):
            use()


def test_labels_that_are_not_integers():
    x, y = CASES["ragged"].loader()[0]
    with pytest.raises(UserError, match=r"class indices in 0\.\.2, got torch\.float64"):
        Objective(seeded(mlp), [(x, y.double())]).value()


@pytest.mark.parametrize("use", [lambda o: o.value(), lambda o: o.gradient(), lambda o: o.sample_losses()])
def test_shrinking_loader(use):
    objective = Objective(seeded(mlp), shrinking(CASES["ragged"].loader()))
    use(objective)
    with pytest.raises(UserError, match="this pass yielded 8 samples, an earlier one 9"):
        use(objective)


def test_shrinking_loader_in_products():
    operator = Hessian(Objective(seeded(mlp), shrinking(CASES["ragged"].loader())), memory=0)
    operator @ random(35)
    with pytest.raises(UserError, match="this pass yielded 8 samples"):
        operator @ random(35)


@pytest.mark.parametrize(
    "batch", [3, "text", None, [1, 2], [], {}, {"a": {}}, torch.tensor(1.0), ("a", torch.tensor(2))]
)
def test_batch_without_samples(batch):
    with pytest.raises(UserError, match=r"loader: a batch of type \w+ holds no tensor"):
        _ = Objective(seeded(mlp), [batch]).samples


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 4), {"x": torch.zeros(3, 4)}, (torch.zeros(3, 4),), [torch.ones(2)] * 3]
)
def test_default_loss_needs_pairs(batch):
    with pytest.raises(UserError, match=r"needs \(x, y\) batches.*loss_fn="):
        Objective(seeded(mlp), [batch]).value()


@pytest.mark.parametrize(
    "reshape", [lambda z: z, lambda z: z.flatten(), lambda z: z.mean().reshape(1), lambda z: z[:-1, 0]]
)
def test_losses_of_the_wrong_shape(reshape):
    objective = Objective(seeded(mlp), CASES["ragged"].loader(), lambda model, batch: reshape(model(batch[0])))
    for use in (objective.value, objective.gradient, objective.sample_losses, lambda: Hessian(objective) @ random(35)):
        with pytest.raises(UserError, match=r"loss_fn: expected losses of shape \(5,\) or a scalar, got"):
            use()


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (lambda losses: losses * 1j, "expected real losses, got torch.complex"),
        (lambda losses: losses.to("meta"), "expected losses that hold numbers, got a tensor on the meta device"),
    ],
)
def test_losses_that_are_no_real_numbers(turn, message):
    def loss(model, batch):
        return turn(nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"))

    objective = Objective(seeded(mlp), CASES["ragged"].loader(), loss)
    for use in (objective.value, objective.gradient, objective.sample_losses, lambda: Hessian(objective) @ random(35)):
        with pytest.raises(UserError, match=f"^loss_fn: {message}"):
            use()


def test_loader_with_a_single_iterator_is_never_read_twice_at_once():
    loader = Loader(CASES["ragged"].loader())
    objective = Objective(seeded(mlp), loader)
    assert_close(objective.gradient(), reference("ragged", torch.float64)[2])
    assert loader.passes == 1
    assert_close(objective.value(), reference("ragged", torch.float64)[3])
    objective.sample_losses()
    assert loader.passes == 3
    assert objective.samples == 9
    assert loader.passes == 3


# --------------------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("use", ["value", "gradient", "sample_losses", "subset", "vector", "outputs_and_losses"])
def test_model_is_left_as_it_was(use):
    model = seeded(BatchNormNet).train()
    model.norm.eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.head.weight.requires_grad_(False)
    model.register_forward_hook(lambda module, arguments, output: None)
    batches = classification(1, 4, 4)()
    before, data = snapshot(model), copy.deepcopy(batches)
    objective = Objective(model, batches, penalty=L2(0.1))
    if use == "outputs_and_losses":
        outputs, losses = objective.outputs_and_losses(objective.chosen, batches[0])
        assert [output.shape for output in outputs] == [(5, 3)]
        assert losses.shape == (5,)
    else:
        getattr(objective, use)(*([4] if use == "subset" else []))
    assert same(before, snapshot(model))
    assert same(data, batches)


@pytest.mark.parametrize("use", ["value", "gradient", "sample_losses"])
def test_model_is_left_as_it_was_when_the_loss_raises(use):
    model = seeded(BatchNormNet).train()
    model.head.eval()
    before = snapshot(model)

    def loss(model, batch):
        model(batch[0])
        raise KeyError("boom")

    with pytest.raises(UserError, match=r"failed on batch 0 \(.*evaluation mode: KeyError: 'boom'") as error:
        getattr(Objective(model, classification(1, 4, 4)(), loss), use)()
    assert isinstance(error.value.__cause__, KeyError)
    assert same(before, snapshot(model))


def test_other_buffers_stand_in_for_those_of_the_model():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval()
    before = snapshot(model)
    data = [(random(8, 4), torch.arange(8) % 3)]
    objective = Objective(model, data)
    mean, var = random(3, seed=1), random(3, seed=2).square()
    other = objective.with_buffers({"1.running_mean": mean, "1.running_var": var})
    hidden = (model[0](data[0][0]) - mean) / (var + model[1].eps).sqrt()
    assert_close(other.sample_losses()[0], nn.functional.cross_entropy(hidden, data[0][1], reduction="none"))
    assert_close(
        objective.sample_losses()[0], nn.functional.cross_entropy(model(data[0][0]), data[0][1], reduction="none")
    )
    assert same(snapshot(model), before)
