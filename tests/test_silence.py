"""Losses of which the GGN says nothing: the Hessian's answers are given, the others are unknown, with the reason."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ggn_limit, random, seeded, without_cost
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from estimators import GGN, L1, L2, Hessian, Objective, SpectralMeasure, UserError
from pruning_limits import MagnitudeProfile, PruningLimit, predict_limit
from pruning_limits.gate import compare
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.ladder import percent
from pruning_limits.layerwise import layer_limits
from pruning_limits.plotting import plot_crossing, plot_rungs
from pruning_limits.report import report_html, thinned
from pruning_limits.retuned import preconditioner, retune
from pruning_limits.retuned_limit import retuned_limit
from pruning_limits.split import compare_splits, layer_curves

ZERO = "the GGN is zero, as of a loss that is linear in the model's outputs (such as the mean absolute error)"
RESTING = ("directional",)


class TwoHeads(nn.Module):
    """A body with two linear heads."""

    def __init__(self, inputs: int = 4, width: int = 6) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, 3), nn.Linear(width, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).tanh()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.first(features), self.second(features)


def absolute(model, batch):
    return (model(batch["x"]) - batch["y"]).abs().mean(1)


def hinge(model, batch):
    return (1 - batch["sign"] * model(batch["x"])[:, 0]).clamp(min=0)


def mixed(model, batch):
    logits, numbers = model(batch["x"])
    entropy = functional.cross_entropy(logits, batch["label"], reduction="none")
    return entropy + (numbers - batch["y"][:, :2]).abs().mean(1)


def of_features(model, batch):
    return (model.features(batch["x"])[:, :3] - batch["y"]).square().mean(1)


def trained(build, loss_fn, samples=200, inputs=4, steps=150):
    """Train a float64 model on data of a teacher; return it with its data in batches of a hundred."""
    x = random(samples, inputs, seed=1)
    y = (x[:, :3] * 1.5).tanh() + 0.1 * random(samples, 3, seed=2)
    data = {"x": x, "y": y, "label": y.argmax(1), "sign": y[:, 0].sign()}
    model = seeded(build)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model, data).mean().backward()
        optimizer.step()
    return model, [{key: value[i : i + 100] for key, value in data.items()} for i in range(0, samples, 100)]


def mlp(inputs=4, width=6):
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def fitted():
    return trained(mlp, absolute)


@pytest.fixture(scope="module")
def limit(fitted):
    return predict_limit(*fitted, absolute, epsilon=0.02)


def dense_hessian(model, batches, loss_fn) -> Tensor:
    """Differentiate the mean loss twice by all matrices of a model, without the library."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [weights[name].numel() for name in names]

    def mean(vector):
        parts = torch.split(vector, sizes)
        changed = weights | {name: part.view_as(weights[name]) for name, part in zip(names, parts, strict=True)}
        losses = [loss_fn(lambda x: functional_call(model, changed, (x,)), batch) for batch in batches]
        return torch.cat(losses).mean()

    start = torch.cat([weights[name].reshape(-1) for name in names])
    return torch.autograd.functional.hessian(mean, start)


def exact_limit(hessian, model, epsilon):
    profile = MagnitudeProfile({name: p.detach() for name, p in model.named_parameters() if p.dim() > 1})
    measure = SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh(hessian).numpy())
    return isotropic_limit(measure, profile.curve(), epsilon).sparsity


def assert_unknown(limit, reason):
    assert re.fullmatch(reason, limit.evidence.unknown), limit.evidence.unknown
    assert all(getattr(limit, name) is None for name in RESTING)
    assert limit.evidence.ggn is limit.evidence.directions is None
    assert limit.answer("re-trained").basis == ("forecast" if limit.criterion == "loss" else "unknown")
    assert limit.answer("bound").basis == "unknown"
    assert limit.upper == 1.0
    assert limit.headroom is None
    assert f"the bound and what the GGN says of re-training are unknown: {limit.evidence.unknown}" in limit.notes


# ------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(("loss_fn", "columns"), [(absolute, 3), (hinge, 1)])
@pytest.mark.parametrize("penalty", [None, L1(1e-3), L2(1e-3)])
def test_losses_that_are_linear_in_the_outputs(loss_fn, columns, penalty):
    model, batches = trained(mlp, loss_fn)
    limit = predict_limit(model, batches, loss_fn, penalty=penalty, criterion="objective", epsilon=0.02)
    hessian = dense_hessian(model, batches, loss_fn)
    assert hessian.abs().max() > 0.01
    if isinstance(penalty, L2):
        hessian += penalty.curvature * torch.eye(len(hessian), dtype=hessian.dtype)
    assert limit.sparsity == pytest.approx(exact_limit(hessian, model, 0.02), abs=1e-9)
    assert limit.sharpness.top_eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]))
    assert 0 < limit.achieved == limit.lower < 0.99
    assert_unknown(limit, re.escape(ZERO))


def test_one_head_with_a_loss_that_is_linear_in_it():
    model, batches = trained(TwoHeads, mixed)
    limit = predict_limit(model, batches, mixed, epsilon=0.02)
    assert limit.sparsity == pytest.approx(exact_limit(dense_hessian(model, batches, mixed), model, 0.02), abs=1e-9)
    assert_unknown(
        limit, "the GGN is zero for second.weight, on which the loss depends, as of a loss that is linear .*"
    )
    alone = predict_limit(model, batches, mixed, epsilon=0.02, parameters=["body.weight", "first.weight"])
    assert alone.evidence.unknown == ""
    assert ggn_limit(alone) < 1


def test_three_silent_layers_at_most_are_named():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(5))

        def forward(self, x):
            return [head(x) for head in self.heads]

    def loss_fn(model, batch):
        first, *others = model(batch["x"])
        return (first - batch["y"]).square().mean(1) + sum((head - batch["y"]).abs().mean(1) for head in others)

    limit = predict_limit(*trained(Heads, loss_fn), loss_fn, epsilon=0.02)
    assert_unknown(limit, r"the GGN is zero for heads\.1\.weight, heads\.2\.weight, heads\.3\.weight, \.\.\., on .*")


@pytest.mark.parametrize("measure", [True, False])
def test_a_loss_of_a_submodule_has_the_answers_of_the_hessian(measure):
    class Features(TwoHeads):
        def forward(self, x):
            return self.features(x)

    def through_the_model(model, batch):
        return (model(batch["x"])[:, :3] - batch["y"]).square().mean(1)

    model, batches = trained(Features, of_features)
    options = {"epsilon": 0.02, "measure": measure, "parameters": "body.weight"}
    known = predict_limit(model, batches, through_the_model, **options)
    limit = predict_limit(model, batches, of_features, **options)
    assert_unknown(limit, "the GGN needs a loss that is computed from a tensor that the model returns, .* 0 calls .*")
    assert known.evidence.unknown == ""
    for name in ("sparsity", "lower", "achieved", "interval", "layer_table", "sharpness", "objective"):
        assert getattr(limit, name) == getattr(known, name), name
    assert limit.evidence.points == known.evidence.points
    for rung in ("one-shot", "formula"):
        assert limit.answer(rung) == known.answer(rung)
    assert 0 < limit.lower < 1


def test_a_loss_of_outputs_that_depend_on_each_other():
    def twice(model, batch):
        once = model(batch["x"][:, :3])
        return (once - batch["y"]).square().mean(1) + (model(once) - batch["y"]).square().mean(1)

    model, batches = trained(lambda: mlp(3), twice)
    limit = predict_limit(model, batches, twice, epsilon=0.02)
    assert_unknown(limit, "the GGN needs a loss of outputs that do not depend on each other, .*")


def test_a_loss_that_ignores_the_outputs():
    def of_weights(model, batch):
        return model.weight.square().sum() + 0.0 * model(batch["x"]).sum()

    def of_submodule(model, batch):
        model(batch["x"])
        return of_features(model, batch)

    model, batches = seeded(lambda: nn.Linear(4, 3)), trained(mlp, absolute, steps=0)[1]
    limit = predict_limit(model, batches, of_weights, epsilon=0.3)
    assert limit.sparsity == pytest.approx(exact_limit(2 * torch.eye(12, dtype=torch.float64), model, 0.3), abs=1e-9)
    assert_unknown(limit, re.escape(ZERO))
    model, batches = trained(TwoHeads, of_submodule)
    assert_unknown(predict_limit(model, batches, of_submodule, epsilon=0.02), "the GGN needs a loss .*, got tuple")


def test_a_hessian_that_is_zero_is_noted():
    model, batches = trained(lambda: nn.Linear(4, 3), absolute)
    limit = predict_limit(model, batches, absolute, epsilon=0.02)
    assert_unknown(limit, re.escape(ZERO))
    assert limit.lower < limit.sparsity == 1
    beginning = "the formula takes weights for free that are not: the Hessian is zero, as of a loss that is "
    assert any(note.startswith(beginning) for note in limit.notes)


def test_layers_without_any_effect_stay_free():
    def first_head(model, batch):
        return functional.cross_entropy(model(batch["x"])[0], batch["label"], reduction="none")

    model, batches = trained(TwoHeads, first_head)
    for curvature in ("hessian", "ggn"):
        limit = predict_limit(model, batches, first_head, epsilon=0.02, curvature=curvature)
        assert limit.evidence.unknown == ""
        assert ggn_limit(limit) > 12 / 54  # the weights of the second head
        assert limit.upper < 1
        assert limit.layers()[-1].trace == 0


# ---------------------------------------------------------------------------- recurrences, sub-samples, checkpoints


@pytest.fixture(scope="module")
def wide():
    """A network of 750 weights, too many for a dense spectrum."""
    return trained(lambda: TwoHeads(20, 30), mixed, samples=300, inputs=20)


OPTIONS = {"epsilon": 0.02, "samples": 128, "steps": 12, "probes": 1}


@pytest.mark.parametrize("penalty", [None, L1(1e-4), L2(1e-4)])
def test_recurrences_find_silent_layers(wide, penalty):
    model, batches = wide
    limit = predict_limit(model, batches, mixed, penalty=penalty, criterion="objective", **OPTIONS)
    assert_unknown(limit, r"the GGN is zero for second\.weight, on which .*")
    model, batches = trained(lambda: mlp(20, 30), absolute, inputs=20)
    limit = predict_limit(model, batches, absolute, penalty=penalty, criterion="objective", **OPTIONS)
    assert_unknown(limit, re.escape(ZERO))


def test_weights_that_are_removed_are_not_silent(wide):
    model, batches = wide
    kept = model.second.weight.detach().clone()
    with torch.no_grad():
        model.second.weight.zero_()
    limit = predict_limit(model, batches, mixed, **OPTIONS)
    with torch.no_grad():
        model.second.weight.copy_(kept)
    assert limit.evidence.unknown == ""
    assert ggn_limit(limit) >= limit.evidence.already_removed == 60 / 750


def test_a_stopped_run_gives_the_same_answers(wide, tmp_path):
    def stop(stage, done, total):
        if stage.startswith("ggn") and done == 8:
            raise KeyboardInterrupt

    reference = predict_limit(*wide, mixed, **OPTIONS)
    options = OPTIONS | {"checkpoint": tmp_path / "run.pt"}
    with pytest.raises(KeyboardInterrupt):
        predict_limit(*wide, mixed, **options, progress=stop)
    for _ in range(2):
        limit = predict_limit(*wide, mixed, **options)
        assert without_cost(limit) == without_cost(reference)


# ----------------------------------------------------------------------------------------------------- refusals


def test_the_ggn_alone_is_refused(fitted, wide):
    remedy = "; take curvature='hessian'"
    with pytest.raises(UserError, match=f"^curvature: {re.escape(ZERO + remedy)}$"):
        predict_limit(*fitted, absolute, curvature="ggn")
    with pytest.raises(UserError, match=rf"^curvature: the GGN is zero for second\.weight, .*{remedy}$"):
        predict_limit(*wide, mixed, **OPTIONS, curvature="ggn")
    with pytest.raises(UserError, match=r"^loss_fn: the GGN needs a loss that is computed from a tensor"):
        predict_limit(*trained(TwoHeads, of_features, steps=0), of_features, curvature="ggn")


@pytest.mark.parametrize("penalty", [None, L2(1e-3)])
def test_limits_that_rest_on_the_ggn_alone_are_refused(fitted, wide, penalty):
    objective = Objective(*fitted, absolute, penalty)
    profile, kept = MagnitudeProfile(objective.chosen), torch.zeros(objective.dimension, dtype=torch.bool)
    for ask in (
        lambda: layer_limits(objective, 0.02, "ggn"),
        lambda: layer_limits(objective, 0.02, "ggn", steps=2),
        lambda: layer_curves(objective),
        lambda: compare_splits(objective, 0.5),
        lambda: retuned_limit(GGN(objective), profile, 0.02, 0.5),
    ):
        with pytest.raises(UserError, match=f"^curvature: {re.escape(ZERO)}; take the Hessian$"):
            ask()
    if penalty is None:
        for ask in (lambda: retune(GGN(objective), profile.vector, kept), lambda: preconditioner(GGN(objective))):
            with pytest.raises(UserError, match=r"^curvature: the GGN is zero"):
                ask()
    objective = Objective(*wide, mixed, penalty)
    with pytest.raises(UserError, match=r"^curvature: the GGN is zero for second\.weight"):
        retuned_limit(GGN(objective), MagnitudeProfile(objective.chosen), 0.02, 0.5)
    assert all(0 < layer.sparsity <= 1 for layer in layer_limits(objective, 0.02, "hessian", samples=100))
    assert layer_curves(objective, "hessian", samples=100)
    assert retuned_limit(Hessian(objective), MagnitudeProfile(objective.chosen), 0.02, 0.5).points


# ------------------------------------------------------------------------------------------ what is done with it


def test_verdicts(limit):
    verdict = limit.check(0.99)
    assert verdict.status == "open"
    assert f"no bound is established beyond {percent(limit.lower)}: {limit.evidence.unknown}" in verdict.reason
    assert verdict.margin == 0.99 - limit.lower
    assert limit.check(limit.lower).status == "achievable"
    assert {limit.check(s).status for s in np.linspace(limit.lower + 1e-9, 1 - 1e-9, 50)} == {"open"}


def test_summary_table_and_repr(limit):
    text = limit.summary()
    again, beyond = (
        next(line for line in text.splitlines() if line.startswith(name)) for name in ("re-trained", "no hope beyond")
    )
    assert again.endswith("forecast, 9 of 10 networks, outside the bench")
    assert re.split(r"  +", beyond) == ["no hope beyond", "unknown", ZERO]
    assert f"the bound and what the GGN says of re-training are unknown: {ZERO}\n" in text
    assert "are unknown: the GGN is zero" in limit._repr_html_()
    assert "bound unknown" in repr(limit)


def test_what_if_keeps_it_unknown(limit):
    assert limit.what_if() == limit
    changed = limit.what_if(epsilon=0.05, weight_scale=0.5, curvature_scale=2.0)
    assert changed.sparsity > limit.sparsity
    assert_unknown(changed, re.escape(ZERO))
    assert changed.check(0.999).status == "open"
    assert limit.what_if(limit.epsilon_for(0.9)).sparsity == pytest.approx(0.9)


def test_json_round_trip(limit, tmp_path):
    path = tmp_path / "limit.json"
    plain = json.loads(limit.to_json(path))
    assert PruningLimit.from_json(path) == limit
    assert PruningLimit.from_json(path).check(0.99) == limit.check(0.99)
    assert [plain[name] for name in RESTING] == [None]
    evidence = plain["evidence"]
    assert evidence["ggn"] is evidence["directions"] is None
    changes = [{"upper": 0.9}, {"retrained": None}, {"directional": 1}]
    changes += [{"evidence": evidence | change} for change in ({"unknown": ""}, {"ggn": evidence["hessian"]})]
    for change in changes:
        path.write_text(json.dumps(plain | change))
        with pytest.raises(UserError, match="is damaged"):
            PruningLimit.from_json(path)


def test_report(limit):
    page = report_html(limit)
    assert "no bound is established" in page  # the script
    data = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    assert data["limit"]["evidence"]["unknown"] == ZERO
    assert ["spectrum behind re-training", "unknown"] in data["behind"]["Network and data"]
    thin = thinned(limit, 8)
    assert thin.evidence.ggn is thin.evidence.directions is None
    assert len(thin.evidence.hessian.measure.nodes) == 8


def test_figures(limit):
    assert isinstance(limit.plot(), Figure)
    for plot in (plot_crossing, plot_rungs):
        axes = plot(limit)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        known = [label for label in labels if "GGN" in label]
        assert known == (["the GGN says nothing, see the notes"] if plot is plot_crossing else [])


def test_gate(limit):
    dense = limit.profile.weights

    def judged(sparsity, rise):
        masks = limit.mask(sparsity)
        pruned = {name: weight * masks[name] for name, weight in dense.items()}
        return compare(limit, dense, pruned, limit.objective, limit.objective + rise)

    between = judged(limit.lower - 0.05, 0.0)
    assert (between.status, between.place) == ("achievable", "achieved")
    assert judged(limit.lower - 0.05, 1.0).status == "infeasible"
    top = max(limit.lower, limit.sparsity) + 0.02
    beyond = judged(top, 0.0)
    assert (beyond.status, beyond.place) == ("achievable", "unbounded")
    assert beyond.cases[0].reason.endswith(f"no bound is established ({ZERO}), and the loss was measured to hold")
    assert judged(top, 1.0).status == "infeasible"
