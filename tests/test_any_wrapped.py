"""Limits of networks that are pruned already, wrapped, compiled, frozen, parametrised, and of those that are unfit."""

import warnings

import pytest
import torch
from any_model import Case, check
from helpers import assert_close, random, same, seeded, snapshot
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from estimators import GGN, L1, L2, Hessian, Objective, UserError
from pruning_limits import PruningLimit, predict_limit
from pruning_limits.ladder import percent

WIDE, NARROW = 6, 4


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def rows(features=4, samples=8):
    return [(random(samples, features, seed=5), torch.arange(samples) % 3)]


# ------------------------------------------------------------------------------------------------- already pruned


def narrow():
    """Fitted by a few steps, so that the weights have something to lose."""
    model, (x, y) = seeded(lambda: nn.Sequential(nn.Linear(NARROW, 7), nn.Tanh(), nn.Linear(7, 3))), rows(NARROW, 60)[0]
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=30)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y) + 0.005 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.zero_grad() or model


def wide(how):
    """The narrow network with two more inputs that are cut off, by a mask or by zeros."""
    small = narrow()
    model = seeded(lambda: nn.Sequential(nn.Linear(WIDE, 7), nn.Tanh(), nn.Linear(7, 3)))
    with torch.no_grad():
        model[0].weight[:, :NARROW] = small[0].weight
        model[0].bias.copy_(small[0].bias)
    model[2].load_state_dict(small[2].state_dict())
    mask = torch.ones(7, WIDE)
    mask[:, NARROW:] = 0
    prune.custom_from_mask(model[0], "weight", mask)
    if how == "zeros":
        prune.remove(model[0], "weight")
    return model


def both_data():
    x, y = rows(NARROW, 60)[0]
    return [(x, y)], [(torch.cat([x, random(len(y), WIDE - NARROW)], 1), y)]


@pytest.mark.parametrize("penalty", [None, L1(0.01), L2(0.01)], ids=repr)
@pytest.mark.parametrize("how", ["mask", "zeros"])
def test_the_limit_is_that_of_what_is_left_counted_from_the_dense_size(how, penalty):
    few, many = both_data()
    left = predict_limit(narrow(), few, penalty=penalty, criterion="objective")
    limit = predict_limit(wide(how), many, penalty=penalty, criterion="objective")
    gone = 7 * (WIDE - NARROW)
    assert left.evidence.already_removed == 0
    assert limit.parameters == 7 * WIDE + 21 == left.parameters + gone
    assert limit.evidence.already_removed == gone / limit.parameters

    def carried(sparsity):
        return (gone + sparsity * left.parameters) / limit.parameters

    for name, error in (("sparsity", 1e-6), ("retrained", 1e-6), ("lower", 1e-6), ("directional", 5e-4)):
        assert getattr(limit, name) == pytest.approx(carried(getattr(left, name)), abs=error), name
    assert 0 < left.lower < left.directional < 1
    for name in ("objective", "epsilon"):
        assert getattr(limit, name) == pytest.approx(getattr(left, name), rel=1e-9)
    assert limit.what_if(epsilon=0.1).sparsity == pytest.approx(carried(left.what_if(epsilon=0.1).sparsity), abs=1e-6)
    assert limit.sharpness.trace == pytest.approx(
        left.sharpness.trace, abs=4 * sum(row.trace_error for row in left.layers())
    )


def test_what_is_gone_is_told_and_kept_in_a_file(tmp_path):
    limit = predict_limit(wide("mask"), both_data()[1])
    share = 7 * (WIDE - NARROW) / limit.parameters
    assert f"{percent(share)} of them removed already" in limit.summary()
    limit.to_json(tmp_path / "limit.json")
    assert PruningLimit.from_json(tmp_path / "limit.json").evidence.already_removed == share
    assert "removed already" not in predict_limit(narrow(), both_data()[0], measure=False).summary()
    with pytest.raises(UserError, match="below the limit under any condition"):
        limit.epsilon_for(share / 2)


def test_masks_remove_first_what_is_gone():
    model = wide("mask")
    limit = predict_limit(model, both_data()[1], measure=False)
    masks = limit.mask(limit.evidence.already_removed)
    assert torch.equal(masks["0.weight_orig"], model[0].weight_mask.bool())
    assert masks["2.weight"].all()
    more = limit.mask(0.8)
    assert not (more["0.weight_orig"] & ~model[0].weight_mask.bool()).any()
    weights = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).detach().abs()
    kept = torch.cat([more["0.weight_orig"].flatten(), more["2.weight"].flatten()])
    assert weights[kept].min() >= weights[~kept].max()


@pytest.mark.parametrize("operator", [Hessian, GGN])
def test_rows_of_masked_weights_are_zero_and_the_penalty_does_not_see_them(operator):
    model, batches = wide("mask"), both_data()[1]
    before = snapshot(model)
    objective = Objective(model, batches, penalty=L2(0.5))
    gone = ~model[0].weight_mask.bool().flatten()
    rows_gone = torch.cat([gone, torch.zeros(21, dtype=torch.bool)])
    assert not objective.vector()[rows_gone].any()
    effective = [model[0].weight, model[0].bias, *model[2].parameters()]
    data_loss = float(entropies(model, batches[0]).mean().detach())
    assert_close(objective.value() - data_loss, 0.25 * sum(w.detach().square().sum() for w in effective))
    plain = operator(Objective(model, batches))
    dense = plain.matmat(torch.eye(objective.dimension).double())
    assert not dense[rows_gone].any()
    held = operator(objective, mask=~rows_gone)
    shifted = dense + 0.5 * torch.diag((~rows_gone).double())
    assert_close(held.matmat(torch.eye(objective.dimension).double()), shifted)
    assert same(before, snapshot(model))


def test_a_weight_behind_a_mask_that_was_trained_on_is_followed():
    model = wide("mask")
    objective = Objective(model, both_data()[1])
    before = objective.value()
    with torch.no_grad():
        model[0].weight_orig.mul_(2)
    assert objective.value() != before
    assert objective.value() == Objective(model, both_data()[1]).value()


# ------------------------------------------------------------------------------- wrapped, compiled, frozen, shared


def test_what_was_compiled_runs_as_it_was_written():
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("this torch cannot run compiled modules as they were written")
    plain = seeded(mlp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever importing the compiler warns of
        whole, part, own = torch.compile(seeded(mlp)), seeded(mlp), seeded(mlp)
        part[0] = torch.compile(part[0])
        own.compile()
    expected = predict_limit(plain, rows())
    for model in (whole, part, own):
        before = snapshot(model)
        limit = predict_limit(model, rows())
        assert limit.sparsity == expected.sparsity
        assert limit.lower == expected.lower
        assert set(limit.mask(0.5)) <= set(dict(model.named_parameters()))
        assert same(before, snapshot(model))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def without_checkpoints(model, batch):
    body = model.body
    hidden = (body[0](batch[0]) + 3).clamp(0, 6) / 6
    return functional.cross_entropy(model.head(body[2](hidden)), batch[1], reduction="none")


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3))


CASES = {
    "checkpointed": Case(Checkpointed, rows, without_checkpoints, 20 + 20 + 12),
    "frozen layers count": Case(frozen, rows, entropies, 35),
    "but for others chosen": Case(frozen, rows, entropies, 15, options={"parameters": "2.weight"}),
    "a layer used twice": Case(shared, rows, entropies, 16 + 12),
    "orthogonal": Case(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), nn.Linear(4, 3)),
        rows,
        entropies,
        12,
        options={"parameters": "1.weight"},
    ),
    "spectral norm": Case(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)),
        rows,
        entropies,
        28,
        options={"parameters": ["*.original", "2.weight"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_limit(name):
    check(CASES[name])


# ----------------------------------------------------------------------------------------------------------- unfit


class Quantised(nn.Module):
    """Stands for a layer of ``torch.ao.nn.quantized``, whose making is deprecated."""

    __module__ = "torch.ao.nn.quantized.modules.linear"


class Sharded(nn.Module):
    __module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"


class Distributed(nn.Parameter):
    def full_tensor(self):
        raise NotImplementedError


def with_integers():
    model = mlp()
    model[0].weight = nn.Parameter(torch.ones(5, 4, dtype=torch.int8), requires_grad=False)
    return model


def with_placements():
    model = mlp()
    model[0].weight = Distributed(torch.ones(5, 4))
    return model


UNFIT = {
    "data parallel": (lambda: nn.DataParallel(mlp()), r"a plain module, got DataParallel; give model\.module"),
    "a part in parallel": (
        lambda: nn.Sequential(nn.DataParallel(nn.Linear(4, 5)), nn.Linear(5, 3)),
        r"got DataParallel; give model\.0\.module",
    ),
    "sharded": (lambda: nn.Sequential(mlp(), Sharded()), r"layer '1' is sharded by Sharded; gather the weights"),
    "sharded weights": (with_placements, r"'weight' of layer '0' is a Distributed, sharded over ranks; gather"),
    "quantised": (
        lambda: nn.Sequential(nn.Linear(4, 3), Quantised()),
        r"layer '1' is quantised \(.*\.Quantised\).* made from",
    ),
    "integers": (with_integers, r"one floating point type, got \['torch.float32', 'torch.int8'\]; convert the model"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), r"got \['torch.complex64'\]; convert the model"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), r"lies on the meta device, which holds no numbers; load"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), r"layer '0' \(LazyLinear\) is not initialised; pass one batch"),
    "lazy norm": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d()),
        r"layer '1' \(LazyBatchNorm1d\) is not",
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))),
        r"layer '0' is computed by a parametrisation; fix it with torch\.nn\.utils\.parametrize\.remove_param",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_models_are_refused_in_one_line(name):
    build, message = UNFIT[name]
    with pytest.raises(UserError, match=rf"^model: (expected )?.*{message}[^\n]*$"):
        predict_limit(build(), [(torch.zeros(2, 4), torch.tensor([0, 1]))])


def test_a_parametrisation_that_was_removed():
    def normalised():
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))

    def removed():
        model = normalised()
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")
        return model

    check(Case(removed, rows, entropies, 35))
