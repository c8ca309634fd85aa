"""Re-tuning in every kind of pattern, each on a problem of which it is known how far it gets."""

import functools
import json

import pytest
import torch
from helpers import same, snapshot
from retuning_problems import doubled, doubled_heads, doubled_in_turn, doubled_units, squares

from estimators import Objective, UserError
from pruning_limits import PruningLimit, Retuning, predict_limit
from pruning_limits.fine_tuning import FineTuning
from pruning_limits.pattern_gate import fit_of
from pruning_limits.retuning import run_seed
from pruning_limits.retuning_gathering import INTERRUPTED

QUICK = {"steps": 4, "probes": 1, "samples": 100, "progress": False}
RETUNING = Retuning(samples=300, passes=12)
PLANTED = {"1:2": doubled_in_turn, "blocks:2x1": doubled, "channels": doubled_units, "heads": doubled_heads}
HALF = 0.5
# What re-tuning can bring back wholly, and pruning alone cannot: two hidden units are enough for two outputs.
REACHED = {"1:2": HALF, "blocks:2x1": HALF, "channels": 10 / 12, "heads": HALF}


@functools.cache
def problem(pattern):
    return PLANTED[pattern]()


def joined(data):
    return tuple(torch.cat(parts) for parts in zip(*data, strict=True))


def error(model, data):
    x, y = joined(data)
    with torch.no_grad():
        return float((model(x) - y).square().sum(1).mean())


@functools.cache
def predicted(*patterns, retuning=RETUNING, **options):
    model, data = problem(next(name for name in patterns if name in PLANTED))
    epsilon = 0.1 * float(joined(data)[1].square().sum(1).mean())
    return predict_limit(model, data, squares, epsilon=epsilon, pattern=patterns, retune=retuning, **QUICK, **options)


@pytest.mark.parametrize("pattern", PLANTED)
def test_what_is_planted_in_a_pattern_is_found_and_no_more(pattern):
    limit = predicted(pattern)
    assert limit.pattern == pattern
    answer = limit.answer("re-tuned")
    reached = REACHED[pattern]
    assert (answer.sparsity, answer.basis) == (reached, "measured")
    assert limit.lower < HALF
    assert limit.answer("one-shot").sparsity == limit.lower
    points = limit.evidence.retuned.points
    assert all((point.rise <= limit.epsilon) == (point.sparsity <= reached) for point in points)
    assert next(point.rise for point in points if point.sparsity == reached) < 0.2 * limit.epsilon
    verdict = limit.check(None if pattern == "1:2" else 0.9 * reached)
    assert verdict.status == "open"
    assert "re-tuning reaches it" in verdict.reason


@pytest.mark.parametrize("pattern", PLANTED)
def test_every_network_has_zeros_of_the_pattern_and_the_rise_that_was_measured(pattern):
    model, data = problem(pattern)
    limit, before = predicted(pattern), snapshot(model)
    groups = limit.profile.structure.groups[pattern]
    for point in limit.evidence.retuned.points:
        pruned, answer = limit.retune(model, data, point.sparsity, squares)
        weights = {name: dict(pruned.named_parameters())[name].detach() for name in limit.settings.parameters}
        assert fit_of(groups, weights).fits
        assert answer.sparsity == point.sparsity
        assert error(pruned, data) - error(model, data) == pytest.approx(point.rise, rel=1e-9, abs=1e-12)
        for name, mask in limit.mask(answer.sparsity).items():
            assert int((weights[name] == 0).sum()) >= int((~mask).sum())
    assert same(snapshot(model), before)


@pytest.mark.parametrize("pattern", ["blocks:2x1", "channels"])
def test_stages_are_nested(pattern):
    model, data = problem(pattern)
    limit = predicted(pattern)
    points = {point.sparsity: point for point in limit.evidence.retuned.points}
    later = [point for point in points.values() if point.start]
    assert later
    for point in later:
        assert point.start in points
        before, after = (limit.retune(model, data, sparsity, squares)[0] for sparsity in (point.start, point.sparsity))
        for name in limit.settings.parameters:
            gone = dict(before.named_parameters())[name] == 0
            assert not dict(after.named_parameters())[name][gone].any()


def test_a_pattern_of_one_sparsity_is_one_stage_in_every_run():
    limit = predicted("1:2", retuning=Retuning(samples=300, passes=12, seeds=2))
    points = limit.evidence.retuned.points
    assert [(point.sparsity, point.start, point.seed) for point in points] == [(HALF, 0.0, 0), (HALF, 0.0, 1)]
    worst = max(point.rise for point in points)
    assert f"re-tuned, 1:2 raises the loss by {worst:.2g}" in limit.answer("re-tuned").status
    assert limit.retune(*problem("1:2"), loss_fn=squares)[1].sparsity == HALF


def test_the_margin_of_one_sparsity_is_counted_in_single_weights():
    alone = predicted("1:2")
    assert "of single weights that are pruned alone, " in alone.check().reason
    both = predicted("unstructured", "1:2")
    single, own = both.for_pattern("unstructured"), both.for_pattern("1:2")
    assert "of single weights that are re-tuned, too, " in own.check().reason
    assert own.check().reason.endswith("points of sparsity to spare")
    rise = own.evidence.retuned.points[0].rise
    reached = max(point.sparsity for point in single.evidence.retuned.points if point.rise <= both.epsilon)
    assert single.answer("re-tuned").sparsity == reached
    same_cost = reached - own.check().margin
    below, above = [[p for p in single.evidence.retuned.points if side(p.rise)] for side in (rise.__ge__, rise.__lt__)]
    assert max([0.0, *(p.sparsity for p in below)]) <= same_cost <= min(p.sparsity for p in above)


def test_patterns_that_were_not_asked_for_are_not_re_tuned():
    limit = predicted("1:2")
    for pattern in ("unstructured", "blocks:2x1"):
        answer = limit.for_pattern(pattern).answer("re-tuned")
        assert (answer.basis, answer.status) == ("unknown", "nothing was re-tuned under these conditions")


def test_patterns_share_what_it_may_cost(monkeypatch):
    from pruning_limits import retuning_gathering

    shares, whole = [], retuning_gathering.staged_retuning

    def watched(objective, retuning, compared, beginning, allowance, *others):
        reached = whole(objective, retuning, compared, beginning, allowance, *others)
        shares.append((allowance, reached.tuning.passed))
        return reached

    monkeypatch.setattr(retuning_gathering, "staged_retuning", watched)
    predicted.__wrapped__("1:2", "unstructured", "blocks:2x1", budget=2000.0)
    (first, spent), (second, more), (third, _) = shares
    assert first == pytest.approx(0.5 * 2000 * 400 / 3)
    assert second == pytest.approx((3 * first - spent) / 2)
    assert third == pytest.approx(3 * first - spent - more)


def test_ctrl_c_keeps_the_patterns_that_were_re_tuned():
    def told(stage, done, total):
        if stage == "re-tuned networks, blocks:2x1" and done == 1:
            raise KeyboardInterrupt

    model, data = problem("blocks:2x1")
    epsilon = predicted("blocks:2x1").epsilon
    limit = predict_limit(
        model,
        data,
        squares,
        epsilon=epsilon,
        pattern=("1:2", "blocks:2x1", "unstructured"),
        retune=RETUNING,
        **QUICK | {"progress": told},
    )
    assert len(limit.evidence.retuned.points) == 1
    assert len(limit.for_pattern("blocks:2x1").evidence.retuned.points) == 1
    assert limit.for_pattern("unstructured").answer("re-tuned").basis == "unknown"
    assert INTERRUPTED in limit.notes


def test_a_network_that_has_the_pattern_is_left_alone():
    model, data = doubled_in_turn()
    pruned = predicted("1:2").prune(model)
    limit = predict_limit(pruned, data, squares, epsilon=1.0, pattern="1:2", retune=RETUNING, **QUICK)
    answer = limit.answer("re-tuned")
    assert (answer.sparsity, answer.status) == (HALF, "the network has this pattern already")
    assert limit.evidence.retuned is None


def test_what_if_and_files_hold_what_was_re_tuned(tmp_path):
    limit = predicted("unstructured", "1:2")
    own = limit.for_pattern("1:2")
    own.to_json(tmp_path / "limit.json")
    again = PruningLimit.from_json(tmp_path / "limit.json")
    assert again == own
    assert again.for_pattern("unstructured").evidence.retuned == limit.evidence.retuned
    rise = own.evidence.retuned.points[0].rise
    assert own.what_if(epsilon=0.5 * rise).answer("re-tuned").sparsity == 0
    assert own.what_if(epsilon=2 * rise).answer("re-tuned").sparsity == HALF
    assert own.what_if(weight_scale=2.0).answer("re-tuned").basis == "unknown"
    plain = json.loads(own.to_json())
    plain["evidence"]["patterns"][1]["retuned"]["points"][0]["sparsity"] = 1.5
    (tmp_path / "limit.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"is damaged \(re-tuned networks are beyond 0 to 1\)"):
        PruningLimit.from_json(tmp_path / "limit.json")


def test_the_table_of_patterns_tells_what_re_tuning_reaches():
    from pruning_limits.pattern_table import cells

    columns, lines = cells(predicted("unstructured", "1:2"))
    place = columns.index("re-tuned")
    single, own = (line[place] for line in lines)
    assert single.startswith("54.2 % (")
    assert own.startswith("holds, ")
    assert own.endswith(" points of sparsity to spare")
    plain = predict_limit(*problem("1:2"), squares, epsilon=1.0, pattern=("unstructured", "1:2"), **QUICK)
    assert "re-tuned" not in cells(plain)[0]


def test_channels_take_their_biases_along():
    """Companions go to zero with their channels and stay there while the others are trained."""
    model, data = doubled_units()
    with torch.no_grad():
        model[0].bias = torch.nn.Parameter(torch.zeros(12, dtype=torch.float64))
    limit = predict_limit(model, data, squares, epsilon=1.0, pattern="channels", **QUICK)
    groups = limit.profile.structure.groups["channels"]
    tuning = FineTuning(Objective(model, data, squares), 300, 3, run_seed(0, 0), groups=groups)
    network = tuning.stage(tuning.dense, tuning.attained(tuning.dense, 45))
    bias = network.vector[12 * 6 : 12 * 6 + 12]
    rows = network.vector[: 12 * 6].view(12, 6)
    assert int((bias != 0).sum()) == 6
    assert torch.equal(bias == 0, (rows == 0).all(1))


def test_saliencies_choose_within_the_runs_of_n_m():
    """Of a run whose smaller weight sees inputs a hundred times as large, the larger weight goes."""
    model, data = doubled_in_turn()
    data = [(x * torch.tensor([1.0, 100.0], dtype=torch.float64).repeat(6), y) for x, y in data]
    groups = predicted("1:2").profile.structure.groups["1:2"]
    tuning = FineTuning(Objective(model, data, squares), 300, 20, 0, groups=groups)
    alone = tuning.pruned(tuning.dense, 12)
    assert alone.kept.view(-1, 2).tolist() == [[True, False]] * 12
    _, moments = tuning.of_dense(alone, tuning.sample(12))
    assert tuning.reconstructed(alone, moments).kept.view(-1, 2).tolist() == [[False, True]] * 12


def test_nothing_is_re_tuned_unasked():
    model, data = problem("1:2")
    assert predict_limit(model, data, squares, epsilon=1.0, pattern="1:2", **QUICK).evidence.retuned is None
