"""The prediction: what it leaves alone, what it depends on, its error, its checkpoints and bad input."""

import copy
import json
import math
import random as python_random

import numpy as np
import pytest
import torch
from helpers import ggn_limit, random, same, seeded, shrinking
from torch import nn

from estimators import GGN, L1, L2, Hessian, Objective, SpectralMeasure, UserError
from pruning_limits import MagnitudeProfile, predict_limit
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.quadratic import QuadraticRise, quadratic_limit

QUICK = {"steps": 8, "probes": 2, "measure": False, "epsilon": 0.02}


def wide_problem(samples=96):
    """A float64 network of 540 weights, too many for the dense spectrum, with labels that it mostly gets right."""
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 27), nn.Tanh(), nn.Linear(27, 8)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        x = random(samples, 12, seed=1)
        y = (model(x) + 0.5 * random(samples, 8, seed=2)).argmax(1)
    return model, x, y


def batched(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


@pytest.fixture
def wide():
    model, x, y = wide_problem()
    return model, [(x, y)]


def plain(limit):
    """The JSON form without what the computation took."""
    fields = json.loads(limit.to_json())
    del fields["evidence"]["cost"]
    return fields


def everything(model):
    """Copy the model's tensors, gradients and flags and the global random states."""

    def bits(tensor):
        return None if tensor is None or tensor.is_meta else tensor.detach().clone()

    parameters, buffers = list(model.named_parameters()), list(model.named_buffers())
    return {
        "identity": [(name, id(tensor)) for name, tensor in parameters + buffers],
        "values": [bits(tensor) for _, tensor in parameters + buffers],
        "grads": [bits(parameter.grad) for _, parameter in parameters],
        "requires_grad": [parameter.requires_grad for _, parameter in parameters],
        "training": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": repr(np.random.get_state(legacy=False)["state"]["key"].tolist()),  # noqa: NPY002
        "numpy position": np.random.get_state(legacy=False)["state"]["pos"],  # noqa: NPY002
        "python": python_random.getstate(),
    }


# ----------------------------------------------------------------------------------------- nothing is changed


class Fragile(nn.Module):
    """Dropout, batch norm, a frozen parameter, a gradient, and modules in different modes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.second, self.quiet = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        self.calls.add_(1)
        return self.head(self.quiet(self.second(self.drop(torch.tanh(self.norm(self.first(x)))))))


class Drawing:
    """A loader that draws from all three global random states, as shuffling does, in vain."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for batch in self.batches:
            torch.rand(3), np.random.rand(3), python_random.random()  # noqa: NPY002
            yield batch


@pytest.fixture
def fragile():
    model = seeded(Fragile).train()
    model.quiet.eval()
    model.second.bias.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    x, y = random(50, 6, seed=3), torch.arange(50) % 3
    return model, Drawing(batched(x, y, 20))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("measure", [True, False])
def test_the_model_and_the_random_states_are_left_as_they_were(fragile, measure, curvature):
    model, loader = fragile
    before = everything(model)
    predict_limit(model, loader, epsilon=0.1, measure=measure, curvature=curvature, penalty=L2(1e-3), samples=30)
    assert same(everything(model), before)


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("last", [0, 2, 3, 5, 6, 8])
def test_they_are_left_as_they_were_when_the_loss_raises(fragile, last, measure):
    model, loader = fragile
    before, calls = everything(model), []

    def loss(module, batch):
        logits = module(batch[0])
        if len(calls) == last:
            torch.rand(1), np.random.rand(1), python_random.random()  # noqa: NPY002
            raise ArithmeticError("boom")
        calls.append(1)
        return nn.functional.cross_entropy(logits, batch[1], reduction="none")

    with pytest.raises(UserError, match="ArithmeticError: boom"):
        predict_limit(model, loader, loss, epsilon=0.1, measure=measure)
    assert same(everything(model), before)


def test_both_curvatures_share_one_pass_and_the_gradient_that_of_the_check(fragile):
    model, loader = fragile
    calls = []

    def loss(module, batch):
        if torch.is_grad_enabled():
            calls.append(len(batch[1]))
        return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    predict_limit(model, loader, loss, epsilon=0.1, measure=False)
    derivatives = [20, 20, 20, 10]  # whether there is a graph, and the gradient that differences are held against
    assert calls == [*derivatives, 20, 20, 10, 20, 20, 10]


def test_training_mode_makes_no_difference(fragile):
    model, loader = fragile
    training = predict_limit(model, loader, epsilon=0.1)
    assert plain(predict_limit(copy.deepcopy(model).eval(), loader, epsilon=0.1)) == plain(training)


# ------------------------------------------------------------------------------------- what it depends on


def test_same_seed_same_bits_and_other_seed_other_bits(wide):
    options = QUICK | {"measure": True, "samples": 64}
    limit = predict_limit(*wide, **options, seed=5)
    torch.rand(7), np.random.rand(7), python_random.random()  # noqa: NPY002
    assert plain(predict_limit(*wide, **options, seed=5)) == plain(limit)
    assert predict_limit(*wide, **options, seed=6).sparsity != limit.sparsity


@pytest.mark.parametrize("samples", [None, 50])
def test_batch_sizes_make_no_difference(samples):
    model, x, y = wide_problem()
    small, large = (
        predict_limit(model, batched(x, y, size), steps=8, probes=1, samples=samples, penalty=L1(1e-4))
        for size in (96, 7)
    )
    for name in ("sparsity", "lower", "upper", "retrained", "achieved", "epsilon", "objective"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), abs=1e-6), name
    assert small.interval == pytest.approx(large.interval, abs=1e-6)


@pytest.mark.parametrize("penalty", [L1(1e-3), L2(0.1)], ids=repr)
def test_with_the_loss_as_criterion_every_number_is_that_of_the_loss_alone(tiny, penalty):
    model, loader = tiny
    options = {"epsilon": 0.02, "probes": 2}
    alone = predict_limit(model, loader, **options)
    limit = predict_limit(model, loader, penalty=penalty, criterion="loss", **options)
    for name in (
        "sparsity",
        "interval",
        "lower",
        "upper",
        "retrained",
        "directional",
        "objective",
        "answers",
        "status",
    ):
        assert getattr(limit, name) == getattr(alone, name), name
    assert (limit.settings.criterion, limit.settings.penalty) == ("loss", repr(penalty))
    assert predict_limit(model, loader, penalty=penalty, criterion="objective", **options).objective > limit.objective


def test_the_penalty_tells_whether_the_weights_are_stationary_where_the_loss_is_the_criterion():
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(model.weight)
    data = [(torch.eye(4).double(), torch.full((4, 1), 1.5).double())]  # every weight has the slope -1/4
    squared = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)  # noqa: E731
    options = {"loss_fn": squared, "epsilon": 0.2}
    moving = predict_limit(model, data, **options)
    resting = predict_limit(model, data, penalty=L1(0.25), **options)
    assert any("not stationary" in note for note in moving.notes)
    assert not any("not stationary" in note for note in resting.notes)


def test_default_epsilon_is_the_deviation_of_a_batch_of_128(tiny):
    model, loader = tiny
    x, y = torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])
    losses = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    limit = predict_limit(model, loader, penalty=L2(0.01), criterion="objective")
    assert limit.epsilon == pytest.approx(float(losses.std()) / math.sqrt(128), rel=1e-12)
    penalty = sum(0.005 * float(p.detach().square().sum()) for p in model.parameters())
    assert limit.objective == pytest.approx(float(losses.mean()) + penalty, rel=1e-12)
    assert limit.settings.epsilon == "batch-std"


def test_scalar_losses(tiny):
    def mean(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    limit, per_sample = predict_limit(*tiny, mean, epsilon=0.02), predict_limit(*tiny, epsilon=0.02)
    for name in ("sparsity", "lower", "upper", "retrained", "objective"):
        assert getattr(limit, name) == pytest.approx(getattr(per_sample, name), abs=1e-9), name


def test_default_epsilon_from_scalar_losses_is_that_of_samples_on_average():
    model, x, y = wide_problem(4000)

    def mean(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    options = {"parameters": "2.weight", "samples": 20, "measure": False}
    expected = predict_limit(model, batched(x, y, 1000), **options).epsilon
    assert predict_limit(model, batched(x, y, 10), mean, **options).epsilon == pytest.approx(expected, rel=0.15)


def test_an_l2_penalty_shifts_the_spectrum_and_lowers_the_limit(tiny):
    without = predict_limit(*tiny, epsilon=0.02, parameters="*")
    shifted = predict_limit(*tiny, epsilon=0.02, parameters="*", penalty=L2(0.1), criterion="objective")
    expected = without.evidence.hessian.measure.nodes + 0.1
    np.testing.assert_allclose(shifted.evidence.hessian.measure.nodes, expected, atol=1e-10)
    assert shifted.sharpness.top_eigenvalue == pytest.approx(without.sharpness.top_eigenvalue + 0.1)
    assert ggn_limit(shifted) < ggn_limit(without)
    options = {"epsilon": 0.02, "negative": "clip", "criterion": "objective"}
    clipped = [predict_limit(*tiny, penalty=penalty, **options).sparsity for penalty in (None, L2(0.1))]
    assert clipped[1] < clipped[0]


def test_an_l1_penalty_has_no_curvature_but_counts_in_the_objective(wide):
    options = QUICK | {"measure": True, "criterion": "objective"}
    without, penalised = (predict_limit(*wide, **options, penalty=penalty) for penalty in (None, L1(0.01)))
    assert penalised.sparsity == without.sparsity
    assert penalised.objective > without.objective
    assert penalised.achieved > without.achieved  # removing weights lowers the penalty


def test_patterns_restrict_the_parameters(tiny):
    limit = predict_limit(*tiny, epsilon=0.02, parameters="2.*")
    assert limit.parameters == 27
    assert tuple(limit.mask(0.5)) == limit.settings.parameters == ("2.weight", "2.bias")
    assert [layer.name for layer in limit.layers()] == ["2.weight", "2.bias"]
    both = predict_limit(*tiny, epsilon=0.02, parameters=["0.weight", "2.weight"])
    assert plain(both) == plain(predict_limit(*tiny, epsilon=0.02))


def test_without_measurement_lower_is_that_of_the_quadratic_model(tiny):
    limit = predict_limit(*tiny, epsilon=0.02, measure=False, penalty=L2(0.01), criterion="objective")
    objective = Objective(*tiny, penalty=L2(0.01))
    rise = QuadraticRise(Hessian(objective), objective.gradient(), MagnitudeProfile(objective.chosen))
    expected = quadratic_limit(rise, 0.02, limit.sparsity)
    assert limit.achieved is None
    assert limit.headroom is None
    assert limit.evidence.points == ()
    assert limit.answer("one-shot").basis == "formula"
    assert limit.lower == expected
    assert 0 < limit.lower <= limit.upper


def test_measured_rises_are_those_of_the_masked_model(wide):
    model, loader = wide
    limit = predict_limit(model, loader, **(QUICK | {"measure": True}))
    assert limit.lower == limit.achieved
    points = limit.evidence.points
    for point in points:
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in limit.mask(point.sparsity).items():
                pruned.get_parameter(name).mul_(mask)
        assert Objective(pruned, loader).value() - limit.objective == pytest.approx(point.rise, abs=1e-12)
    assert all(point.rise <= 0.02 for point in points if point.sparsity <= limit.achieved)
    one_shot = limit.answer("one-shot")
    (first,) = (point.rise for point in points if point.sparsity == one_shot.high)
    assert first > 0.02
    assert one_shot.low == limit.achieved == max(point.sparsity for point in points if point.sparsity < one_shot.high)


def test_curvature_ggn(tiny):
    limit, default = predict_limit(*tiny, epsilon=0.02, curvature="ggn"), predict_limit(*tiny, epsilon=0.02)
    assert limit.sparsity == pytest.approx(ggn_limit(default), abs=1e-9)
    assert ggn_limit(limit) == ggn_limit(default)
    trace = float(torch.trace(GGN(Objective(*tiny)) @ torch.eye(72, dtype=torch.float64)))
    assert limit.sharpness.trace == pytest.approx(trace, rel=0.5)
    assert limit.cost.products < default.cost.products


def test_clipping_allows_at_least_as_much(tiny):
    clipped, default = (predict_limit(*tiny, epsilon=0.02, negative=negative) for negative in ("clip", "abs"))
    assert default.sharpness.negative_share > 0
    assert clipped.sparsity > default.sparsity
    assert ggn_limit(clipped) == ggn_limit(default)


def test_cost(wide):
    limit = predict_limit(*wide, **(QUICK | {"measure": True}))
    cost = limit.cost
    knots = len(limit.evidence.directions.sparsities)
    # both spectra; steps and the rise of every direction; four products for traces, five of the quadratic model
    assert cost.products == 2 * 8 * 2 + (4 + 1) * knots + 9
    assert cost.samples == 96 * cost.products
    # losses, gradient, four for constant outputs and strangers, the pruned networks
    assert cost.forward_samples == 96 * (6 + len(limit.evidence.points))
    assert 0 < cost.seconds < 600
    assert 10e6 < cost.peak_memory < 1e12


# ------------------------------------------------------------------------------------------ further questions


@pytest.fixture(scope="module")
def asked():
    model, x, y = wide_problem()
    return predict_limit(model, [(x, y)], epsilon=0.02, steps=12, probes=2)


@pytest.mark.parametrize("epsilon", [0.003, 0.02, 0.3])
def test_what_if_epsilon_equals_a_new_prediction(wide, asked, epsilon):
    answer, anew = asked.what_if(epsilon=epsilon), predict_limit(*wide, epsilon=epsilon, steps=12, probes=2)
    assert answer.sparsity == pytest.approx(anew.sparsity, abs=1e-9)
    assert ggn_limit(answer) == pytest.approx(ggn_limit(anew), abs=1e-9)
    assert answer.epsilon == epsilon
    assert answer.achieved == answer.lower <= anew.achieved + 0.01  # read off the sparsities measured before
    assert answer.lower <= answer.upper
    assert answer.cost == asked.cost


def test_what_if_nothing_changes(asked):
    assert asked.what_if() == asked
    assert asked.what_if(epsilon=asked.epsilon).lower == asked.lower


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_what_if_weights_were_scaled(asked, factor):
    answer = asked.what_if(weight_scale=factor)
    curve = MagnitudeProfile({"w": factor * asked.profile.vector}).curve()
    hessian, ggn = asked.evidence.hessian, asked.evidence.ggn
    for sparsity, estimate, negative in ((answer.sparsity, hessian, "abs"), (ggn_limit(answer), ggn, "clip")):
        measures = [estimate.measure] if estimate.above is None else [estimate.measure, estimate.above]
        kept = [1 - isotropic_limit(measure, curve, 0.02, negative).sparsity for measure in measures]
        assert sparsity == pytest.approx(1 - math.prod(kept) ** (1 / len(kept)), abs=1e-9)
    assert answer.achieved is None
    assert answer.sharpness.trace == asked.sharpness.trace
    with pytest.raises(UserError, match="mask"):
        answer.mask(0.5)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_what_if_curvature_were_scaled_equals_a_scaled_loss(wide, asked, factor):
    def scaled(model, batch):
        return factor * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    answer = asked.what_if(curvature_scale=factor)
    anew = predict_limit(*wide, scaled, epsilon=0.02, steps=12, probes=2)
    assert answer.sparsity == pytest.approx(anew.sparsity, abs=1e-7)
    assert ggn_limit(answer) == pytest.approx(ggn_limit(anew), abs=1e-7)
    for name in ("trace", "top_eigenvalue", "effective_dimension", "negative_share"):
        assert getattr(answer.sharpness, name) == pytest.approx(getattr(anew.sharpness, name), rel=1e-6), name
    both = asked.what_if(epsilon=0.02 * factor, curvature_scale=factor)
    assert both.sparsity == pytest.approx(asked.sparsity, abs=1e-9)


def test_what_if_is_monotone(asked):
    factors = [0.1, 0.5, 1.0, 2.0, 10.0]
    for read in (lambda limit: limit.sparsity, ggn_limit, lambda limit: limit.lower):
        rising = [read(asked.what_if(epsilon=0.02 * factor)) for factor in factors]
        lighter = [read(asked.what_if(weight_scale=factor)) for factor in factors]
        flatter = [read(asked.what_if(curvature_scale=factor)) for factor in factors]
        assert rising == sorted(rising)
        assert lighter == sorted(lighter, reverse=True)
        assert flatter == sorted(flatter, reverse=True)
        assert rising[0] < rising[-1]
        assert lighter[0] > lighter[-1]
        assert flatter[0] > flatter[-1]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["epsilon", "weight_scale", "curvature_scale"])
def test_what_if_needs_positive_numbers(asked, name, value):
    with pytest.raises(UserError, match=f"^{name}: "):
        asked.what_if(**{name: value})


# ------------------------------------------------------------------------------------------ numerical error


@pytest.fixture(scope="module")
def exact():
    """Limits of the wide network from the dense eigenvalues of Hessian and GGN."""
    model, x, y = wide_problem()
    objective = Objective(model, [(x, y)])
    identity = torch.eye(objective.dimension, dtype=torch.float64)
    curve = MagnitudeProfile(objective.chosen).curve()
    limits = []
    for operator, negative in ((Hessian(objective), "abs"), (GGN(objective), "clip")):
        measure = SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh(operator @ identity).numpy())
        limits.append(isotropic_limit(measure, curve, 0.02, negative).sparsity)
    return limits


def test_as_many_steps_as_weights_are_exact(wide, exact):
    limit = predict_limit(*wide, epsilon=0.02, steps=540, measure=False)
    assert [limit.sparsity, ggn_limit(limit)] == pytest.approx(exact, abs=1e-9)
    assert limit.interval == (limit.sparsity, limit.sparsity)
    assert limit.answer("formula").status == "converged"


@pytest.mark.parametrize(
    "options",
    [{"steps": 12, "probes": 1}, {"steps": 32, "probes": 2}, {"steps": 24, "probes": 1, "samples": 48}],
    ids=["few steps", "many steps", "half of the data"],
)
def test_the_interval_holds_the_dense_answer(wide, exact, options):
    errors = []
    for seed in range(3):
        limit = predict_limit(*wide, epsilon=0.02, measure=False, seed=seed, **options)
        low, high = limit.interval
        widest = 0.45 if "samples" in options else 0.4  # a draw has an error of its own
        assert low < limit.sparsity < high < low + widest
        errors.append(abs(limit.sparsity - exact[0]) / ((high - low) / 2))
        assert abs(ggn_limit(limit) - exact[1]) < 0.15
        assert limit.evidence.hessian.steps == options["steps"]
        assert limit.evidence.hessian.measure.probes == options["probes"]
        assert limit.evidence.hessian.samples == options.get("samples", 96)
        assert (limit.evidence.hessian.sample_error > 0) == ("samples" in options)
    assert sum(error <= 1 for error in errors) >= 2
    assert max(errors) < 2


@pytest.mark.parametrize("penalty", [None, L2(0.01)])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_dead_units_are_taken_out_exactly(penalty, masked):
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 8)))
    with torch.no_grad():
        model[0].bias[:30] = -100.0
        if masked:
            model[0].weight[:10] = 0.0
    x = random(96, 12, seed=1)
    options = {"epsilon": 0.02, "steps": 10, "probes": 1, "measure": False}
    limit = predict_limit(model, [(x, model(x).argmax(1))], penalty=penalty, criterion="objective", **options)
    for estimate in (limit.evidence.hessian, limit.evidence.ggn):
        shares = {value: estimate.measure.weights[estimate.measure.nodes == value].sum() for value in (0.0, 0.01)}
        removed, idle = (120, 20 * 12 + 30 * 8) if masked else (0, 30 * 20)
        assert shares[0.0] == pytest.approx((removed + (0 if penalty else idle)) / 800, abs=1e-12)
        assert shares[0.01] == pytest.approx((idle if penalty else 0) / 800, abs=1e-12)


def test_an_unresolved_limit_says_why(wide):
    limit = predict_limit(*wide, **QUICK, tolerance=1e-4)
    status = limit.answer("formula").status
    assert status.startswith("unresolved: half-width ")
    assert "exceeds tolerance 0.0001" in status
    assert "formula (+- " in limit.status
    settled = predict_limit(*wide, **QUICK, tolerance=10.0)
    assert settled.answer("formula").status == "converged"
    assert settled.status.startswith("settled: one-shot, re-trained, ")


def test_automatic_steps_stop_when_the_limit_settles(wide):
    limit = predict_limit(*wide, epsilon=0.02, probes=2, tolerance=0.2, measure=False)
    assert 24 <= limit.evidence.hessian.steps < 96
    assert limit.evidence.hessian.step_error <= 0.05
    assert limit.answer("formula").status == "converged"


@pytest.mark.parametrize(("tolerance", "expected"), [(1e-4, 2), (0.1, 1)])
def test_probes_follow_where_their_error_counts(wide, tolerance, expected):
    options = {"epsilon": 0.02, "steps": 100, "measure": False, "tolerance": tolerance}
    limit = predict_limit(*wide, **options)
    assert limit.evidence.hessian.measure.probes == expected
    drawn_at_once = predict_limit(*wide, **options, probes=expected)
    assert limit.interval == pytest.approx(drawn_at_once.interval, abs=1e-9)
    assert limit.cost.products == drawn_at_once.cost.products


def test_probes_do_not_follow_where_steps_are_the_larger_error(wide):
    limit = predict_limit(*wide, epsilon=0.02, steps=8, measure=False, tolerance=1e-4)
    _, error = limit.evidence.hessian.measure.integrate(lambda x: 1 / (1 + abs(x)))
    assert limit.evidence.hessian.measure.probes == 1
    assert 0 < 2 * error < limit.evidence.hessian.step_error


# ------------------------------------------------------------------------------------ progress, checkpoint


def test_progress_is_told_stage_and_count(wide):
    told = []
    predict_limit(*wide, **QUICK, samples=48, progress=lambda *arguments: told.append(arguments))
    asked = {f"{kind}, 48 samples": 8 for kind in ("directions", "hessian spectrum", "ggn spectrum")}
    asked |= {f"{kind} spectrum, 12 samples": 8 for kind in ("hessian", "ggn")}
    assert {(stage, total) for stage, _, total in told} == set(asked.items())
    assert all(0 <= done <= total for _, done, total in told)
    for stage in asked.keys() - {"directions, 48 samples"}:
        assert [done for heading, done, _ in told if heading == stage] == list(range(0, asked[stage] + 1, 4))


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars(wide, capsys, shown):
    predict_limit(*wide, **QUICK, progress=shown)
    assert ("hessian spectrum" in capsys.readouterr().err) == shown


class Stop:
    """A progress callback that is interrupted when a stage has done so many steps."""

    def __init__(self, stage, steps):
        self.stage, self.steps = stage, steps

    def __call__(self, stage, done, total):
        if stage.startswith(self.stage) and done >= self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [0, 4])
def test_an_interrupt_from_progress_leaves_the_model_alone(wide, steps):
    before = everything(wide[0])
    with pytest.raises(KeyboardInterrupt):
        predict_limit(*wide, **QUICK, progress=Stop("ggn", steps))
    assert same(everything(wide[0]), before)


@pytest.mark.parametrize("stop", [Stop("hessian", 12), Stop("ggn", 4)], ids=["hessian", "ggn"])
@pytest.mark.parametrize(("steps", "probes"), [(None, 2), (15, 2), (15, None)])
def test_a_stopped_run_continues_to_the_same_bits(wide, tmp_path, stop, steps, probes):
    options = {"epsilon": 0.02, "steps": steps, "probes": probes, "tolerance": 0.1, "samples": 60, "measure": False}
    reference = predict_limit(*wide, **options)
    checkpoint = tmp_path / "state" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        predict_limit(*wide, **options, checkpoint=checkpoint, progress=stop)
    resumed = predict_limit(*wide, **options, checkpoint=checkpoint)
    assert plain(resumed) == plain(reference)
    assert resumed.cost.products < reference.cost.products
    finished = predict_limit(*wide, **options, checkpoint=str(checkpoint))
    assert plain(finished) == plain(reference)
    assert finished.cost.products < resumed.cost.products
    assert [file.name for file in checkpoint.parent.iterdir()] == ["run.pt"]


def test_a_run_stopped_among_further_probes_continues_to_the_same_bits(wide, tmp_path):
    options = {"epsilon": 0.02, "steps": 60, "tolerance": 0.001, "samples": 60, "measure": False}
    reference, begun = predict_limit(*wide, **options), []
    assert reference.evidence.hessian.measure.probes > 1

    def stop(stage, done, total):
        if stage == "hessian spectrum, 60 samples":
            begun.append(done == 0)
            if sum(begun) == 2 and done == 12:
                raise KeyboardInterrupt

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        predict_limit(*wide, **options, checkpoint=checkpoint, progress=stop)
    resumed = predict_limit(*wide, **options, checkpoint=checkpoint)
    assert plain(resumed) == plain(reference)
    assert resumed.cost.products < reference.cost.products - 60


def test_a_run_whose_krylov_space_is_exhausted_resumes(tmp_path):
    model = nn.Linear(600, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(random(1, 600, seed=4))
    loader = [(random(5, 600, seed=5), random(5, 1, seed=6))]

    def square(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1)

    options = {"epsilon": 0.1, "probes": 2, "measure": False, "checkpoint": tmp_path / "run.pt"}
    limit = predict_limit(model, loader, square, **options)
    assert limit.evidence.hessian.steps <= 8  # five samples and the null space, and rounding
    assert limit.evidence.hessian.step_error == 0
    assert plain(predict_limit(model, loader, square, **options)) == plain(limit)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, loader, options: model[0].weight.data[0, 0].add_(1e-9),
        lambda model, loader, options: model[2].bias.data[0].add_(1e-9),
        lambda model, loader, options: loader[0][0][0].add_(1e-3),
        lambda model, loader, options: options.update(seed=1),
        lambda model, loader, options: options.update(penalty=L2(0.1)),
        lambda model, loader, options: options.update(epsilon=0.03),
        lambda model, loader, options: options.update(parameters="2.weight"),
    ],
    ids=["weight", "bias", "data", "seed", "penalty", "epsilon", "parameters"],
)
def test_a_checkpoint_of_another_run_is_refused(wide, tmp_path, change):
    model, loader = wide
    options = QUICK | {"checkpoint": tmp_path / "run.pt"}
    predict_limit(model, loader, **options)
    content = (tmp_path / "run.pt").read_bytes()
    change(model, loader, options)
    with pytest.raises(UserError, match=r"^checkpoint: .*run\.pt belongs to another model, data or setting"):
        predict_limit(model, loader, **options)
    assert (tmp_path / "run.pt").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_refused(wide, tmp_path, content):
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"^checkpoint: .*run\.pt"):
        predict_limit(*wide, **QUICK, checkpoint=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == content


def test_a_checkpoint_that_cannot_be_written(wide, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*run\.pt"):
        predict_limit(*wide, **QUICK, checkpoint=tmp_path / "file" / "run.pt")


def test_a_checkpoint_that_is_no_file_is_refused_before_anything_is_computed(tmp_path):
    def loss(model, batch):
        raise AssertionError("was called")

    model, data = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
    for path in (tmp_path, 3, "", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"(^checkpoint: expected the path of a file|^cannot write )"):
            predict_limit(model, data, loss, checkpoint=path)


def test_a_network_of_one_weight(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    data = [(torch.linspace(-1, 1, 20)[:, None], torch.linspace(-1, 1, 20)[:, None] * 2)]
    with torch.no_grad():
        model.weight.fill_(2.1)
    limit = predict_limit(model, data, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1))
    assert limit.parameters == 1
    assert limit.lower in (0.0, 1.0)
    assert 0 <= limit.sparsity <= 1
    assert limit.summary()


# -------------------------------------------------------------------------------------------------- bad input


def refused(argument, model, loader, *positional, **options):
    """Expect one line that names the argument, and nothing changed."""
    before = everything(model)
    with pytest.raises(UserError) as caught:
        predict_limit(model, loader, *positional, **options)
    message = str(caught.value)
    assert message.startswith(f"{argument}: ")
    assert "\n" not in message
    assert same(everything(model), before)
    return message


class Augmented:
    """Other data on every pass."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter([(x + 0.3 * torch.randn_like(x), y) for x, y in self.batches])


def test_empty_loader(tiny):
    assert "no samples" in refused("loader", tiny[0], [])


def test_loader_that_augments_at_random(tiny):
    assert "augmentation" in refused("loader", tiny[0], Augmented(tiny[1]))


def test_loader_that_can_be_read_only_once(tiny):
    assert "same samples every time" in refused("loader", tiny[0], iter(tiny[1]))


def test_loader_that_shrinks(tiny):
    refused("loader", tiny[0], shrinking(tiny[1]))


def test_labels_out_of_range(tiny):
    model, loader = tiny
    for label in (3, -1):
        assert "0..2" in refused("loader", model, [(x, torch.full_like(y, label)) for x, y in loader])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite(tiny, bad):
    def loss(model, batch):
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return torch.where(torch.arange(len(losses)) == 3, bad, losses)

    assert "3 of 50" in refused("loss_fn", *tiny, loss)


def test_losses_that_are_all_equal(tiny):
    def loss(model, batch):
        return model(batch[0]).sum(1) * 0 + 1.0

    assert "all losses are equal" in refused("epsilon", *tiny, loss)


def test_one_scalar_loss_has_no_deviation(tiny):
    model, loader = tiny
    assert "at least two" in refused("epsilon", model, loader[:1], lambda model, batch: model(batch[0]).square().mean())


def test_model_without_layers_to_prune(tiny):
    model = nn.Sequential(nn.LayerNorm(6), nn.ReLU()).double()
    assert "parameters=" in refused("model", model, tiny[1])


def test_model_of_another_kind(tiny):
    with pytest.raises(UserError, match=r"^model: expected a torch\.nn\.Module, got function$"):
        predict_limit(lambda x: x, tiny[1])


@pytest.mark.parametrize("patterns", ["nothing.*", ["a", "b"], []])
def test_patterns_that_match_nothing(tiny, patterns):
    refused("parameters", *tiny, parameters=patterns)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_weights_that_are_all_zero_or_not_finite(tiny, value):
    model, loader = tiny
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(value)
    if math.isnan(value):
        with pytest.raises(UserError, match=r"^model: .*NaN"):
            predict_limit(model, loader)
    else:
        refused("model", model, loader)


def test_model_on_two_devices(tiny):
    model, loader = tiny
    model[2] = nn.Linear(8, 3, device="meta")
    assert "cpu, meta" in refused("model", model, loader)


@pytest.mark.parametrize(
    "epsilon", [0, 0.0, -0.1, math.nan, math.inf, -math.inf, "batch", "0.1", None, [0.1, 0.2]], ids=repr
)
def test_epsilon(tiny, epsilon):
    assert "'batch-std' or a positive number" in refused("epsilon", *tiny, epsilon=epsilon)


@pytest.mark.parametrize("value", ["Hessian", "fisher", None, 1])
@pytest.mark.parametrize(("name", "known"), [("curvature", "hessian, ggn"), ("negative", "abs, clip")])
def test_unknown_choices(tiny, name, known, value):
    message = refused(name, *tiny, **{name: value})
    assert known in message
    assert repr(value) in message


@pytest.mark.parametrize("count", [0, -3])
@pytest.mark.parametrize("name", ["samples", "steps", "probes"])
def test_counts_below_one(tiny, name, count):
    assert str(count) in refused(name, *tiny, **{name: count})


@pytest.mark.parametrize("tolerance", [0.0, -0.1, math.nan])
def test_tolerance(tiny, tolerance):
    refused("tolerance", *tiny, tolerance=tolerance)


@pytest.mark.parametrize("budget", [0.0, -1, math.nan, math.inf, "1", True])
def test_budget(tiny, budget):
    assert "epochs of training" in refused("budget", *tiny, budget=budget)


def test_curvature_that_is_undefined(tiny):
    def loss(model, batch):
        return torch.linalg.vector_norm(model(batch[0]) * 0, dim=1) + 1 + batch[1]  # the norm has a kink at zero

    assert "second derivative" in refused("GGN", *tiny, loss)


def test_the_ggn_of_a_sub_sample_is_extrapolated_towards_all_data(trained, digits):
    batches = digits.batches("train")
    options = {"penalty": L1(1e-3), "steps": 48, "probes": 2, "measure": False}
    part, whole = (predict_limit(trained, batches, samples=samples, **options) for samples in (350, 1400))
    raw = part.evidence.ggn.on_samples(ggn_limit(part))
    assert part.evidence.ggn.growth > 1 == whole.evidence.ggn.growth
    assert raw > ggn_limit(part)
    assert abs(ggn_limit(part) - ggn_limit(whole)) < abs(raw - ggn_limit(whole)) / 2
    assert part.evidence.hessian.growth <= 1 == whole.evidence.hessian.growth
    assert abs(ggn_limit(part) - ggn_limit(whole)) <= part.evidence.ggn.sample_error + part.evidence.ggn.step_error


def test_a_limit_that_was_extrapolated_answers_inverse_questions(trained, digits):
    limit = predict_limit(trained, digits.batches("train"), samples=350, steps=24, curvature="ggn", measure=False)
    assert limit.sparsity == pytest.approx(ggn_limit(limit), abs=1e-9)
    assert limit.what_if(epsilon=limit.epsilon_for(0.9)).sparsity == pytest.approx(0.9, abs=1e-6)
    assert limit.what_if().sparsity == limit.sparsity


def test_intervals_of_a_sub_sample_hold_the_answer_of_all_data():
    """On a network of a few hundred weights, whose loss is the user's own."""
    x = random(512, 8)
    batches = list(zip(x.split(128), torch.tanh(x @ random(8, 4, seed=1)).split(128), strict=True))
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)))

    def squares(model, batch):
        return (model(batch[0]) - batch[1]).square().mean(1)

    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for batch in 20 * batches:
        optimiser.zero_grad()
        squares(model, batch).mean().backward()
        optimiser.step()
    whole = predict_limit(model, batches, loss_fn=squares)
    parts = [predict_limit(model, batches, loss_fn=squares, samples=128, seed=seed) for seed in range(5)]
    assert all(part.interval[0] <= whole.sparsity <= part.interval[1] for part in parts)
    assert all(part.interval[1] - part.interval[0] < 0.3 for part in parts)
    assert all(part.answer("bound").high >= whole.answer("bound").sparsity for part in parts)
