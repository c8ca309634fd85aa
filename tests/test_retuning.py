"""How far pruning gets with re-tuning in stages."""

import dataclasses
import functools
import math
import os
import signal

import pytest
import torch
from helpers import ggn_limit, same, snapshot, without_cost
from retuning_problems import classes
from torch import nn

from estimators import Objective, UserError
from estimators.files import load_tensors, save_tensors
from pruning_limits import PruningLimit, Retuning, predict_limit, retuning_gathering
from pruning_limits.compute_budget import FREE_OPERATIONS
from pruning_limits.fine_tuning import FineTuning
from pruning_limits.magnitude import removed_count
from pruning_limits.retuning import NARROW, run_seed

QUICK = {"steps": 4, "probes": 1, "samples": 100, "progress": False}
SMALL = Retuning(samples=256, passes=2)
DROP = {"metric": "accuracy", "max_drop": 0.02}


@pytest.fixture(scope="module")
def problem():
    return classes()


@pytest.fixture(scope="module")
def limit(problem):
    return predict_limit(*problem, **QUICK, **DROP, retune=SMALL)


@pytest.fixture(scope="module")
def by_loss(problem):
    return predict_limit(*problem, **QUICK, epsilon=0.05, retune=SMALL)


def replayed(problem, limit, sparsity, seed=0):
    """The re-tuned network of a sparsity, stage by stage from what was recorded."""
    model, data = problem
    tuning = FineTuning(Objective(model, data), SMALL.samples, SMALL.passes, run_seed(limit.settings.seed, seed))
    points = {point.sparsity: point for point in limit.evidence.retuned.run(seed)}
    way = [sparsity]
    while points[way[0]].start:
        way.insert(0, points[way[0]].start)
    network = tuning.dense
    for stage in way:
        network = tuning.stage(network, removed_count(stage, tuning.dimension))
    return tuning, network


@pytest.mark.parametrize("which", ["limit", "by_loss"])
def test_every_point_is_reproduced_by_forward_passes(problem, request, which):
    limit = request.getfixturevalue(which)
    model, data = problem
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    for point in limit.evidence.retuned.points:
        tuning, network = replayed(problem, limit, point.sparsity)
        twin = tuning.objective.chosen
        sizes = [part.numel() for part in twin.values()]
        weights = {name: part.view_as(twin[name]) for name, part in zip(twin, network.vector.split(sizes), strict=True)}
        scores = torch.func.functional_call(model, weights, x)
        rise = nn.functional.cross_entropy(scores, y) - nn.functional.cross_entropy(model(x), y)
        assert point.rise == pytest.approx(float(rise.detach()), abs=1e-9)
        removed = sum(int((weights[name] == 0).sum()) for name in limit.settings.parameters)
        assert removed == round(point.sparsity * limit.parameters)
        if point.drop is not None:
            falls = (model(x).argmax(1) == y).double().mean() - (scores.argmax(1) == y).double().mean()
            assert point.drop == pytest.approx(float(falls), abs=1e-12)


@pytest.mark.parametrize("which", ["limit", "by_loss"])
def test_it_gets_further_than_pruning_alone_and_names_the_last_that_passes(request, which):
    limit = request.getfixturevalue(which)
    answer, points = limit.answer("re-tuned"), limit.evidence.retuned.points
    allowed = (lambda point: point.drop <= 0.02) if which == "limit" else (lambda point: point.rise <= 0.05)
    passing = [point for point in points if allowed(point)]
    assert answer.sparsity == max(point.sparsity for point in passing) > limit.lower
    assert answer.basis == "measured"
    assert answer.low <= answer.sparsity <= answer.high
    assert min(point.sparsity for point in points if not allowed(point)) <= answer.high
    if which == "limit":
        point = next(point for point in points if point.sparsity == answer.sparsity)
        assert answer.metric == pytest.approx(limit.dense_metric - point.drop)


def test_the_search_halves_what_is_kept_and_then_the_bracket(limit, by_loss):
    for prediction in (limit, by_loss):
        points = sorted(prediction.evidence.retuned.points, key=lambda point: point.start)
        first = prediction.evidence.retuned.points
        kept = prediction.parameters * (1 - prediction.lower)
        assert {round(prediction.parameters * (1 - point.sparsity)) for point in first} & {round(kept / 2)}
        starts = {point.start for point in points} - {0.0}
        assert starts <= {point.sparsity for point in points}


@pytest.fixture(scope="module")
def tuned(problem):
    """Predictions that say nothing but how far re-tuning gets, by what it may cost."""

    @functools.cache
    def predicted(epochs, seeds=1, budget=None):
        retuning = Retuning(samples=256, passes=2, epochs=epochs, seeds=seeds)
        return predict_limit(*problem, **QUICK, **DROP, retune=retuning, budget=budget).evidence.retuned

    return predicted


def test_one_stage_is_done_in_any_case(tuned):
    assert len(tuned(1e-3).points) == 1
    assert tuned(1e-3).passed > 1e-3 * 400


def test_further_stages_are_done_while_the_allowance_pays_for_one_like_the_last(tuned):
    whole = tuned(100.0).points
    first = tuned(1e-3).passed
    assert len(whole) > 3
    for stages in (2, 3):
        few = tuned((stages * 1.2 * first) / 400)
        assert first < few.passed <= stages * 1.2 * first
        assert set(few.points) < set(whole)
    assert len(tuned(1.99 * first / 400).points) == 1


def test_runs_share_what_is_allowed_evenly_and_later_ones_have_what_was_left(tuned):
    first = tuned(1e-3).passed
    both = tuned(4.8 * first / 400, seeds=2)
    assert both.passed <= 4.8 * first
    assert [len(both.run(run)) for run in both.runs] == [2, 2]
    assert [len(tuned(1e-3, seeds=2).run(run)) for run in (0, 1)] == [1, 1]


def test_without_epochs_half_of_the_budget_is_allowed(problem, monkeypatch):
    allowances = []

    def taken(objective, retuning, compared, beginning, allowance, *others):
        allowances.append(allowance)
        raise KeyError

    monkeypatch.setattr(retuning_gathering, "staged_retuning", taken)
    for budget, epochs in ((4.0, None), (None, None), (4.0, 7.0)):
        with pytest.raises(KeyError):
            predict_limit(*problem, **QUICK, **DROP, retune=dataclasses.replace(SMALL, epochs=epochs), budget=budget)
    free = FREE_OPERATIONS / (2 * 12 * 16 + 2 * 16 * 3)  # forward passes of a small network
    assert allowances == pytest.approx([2.0 * 400, free / 6, 7.0 * 400])


def test_the_cost_of_the_prediction_holds_that_of_re_tuning(problem, limit):
    alone = predict_limit(*problem, **QUICK, **DROP).cost
    assert limit.cost.forward_samples == alone.forward_samples
    assert limit.cost.epochs == pytest.approx(alone.epochs + limit.evidence.retuned.passed / 400)


def test_a_narrow_bracket_ends_the_search(limit):
    points = limit.evidence.retuned.points
    low = limit.answer("re-tuned").sparsity
    high = min(point.sparsity for point in points if point.sparsity > low)
    width = limit.settings.tolerance
    assert (1 - low) / (1 - high) <= NARROW or high - low <= max(width, 1 / limit.parameters) or len(points) > 4


def test_equal_seeds_give_equal_limits_and_the_model_is_left_as_it_is(problem, limit):
    before = snapshot(problem[0])
    again = predict_limit(*problem, **QUICK, **DROP, retune=SMALL)
    assert same(snapshot(problem[0]), before)
    timeless = [_timeless(answer) for answer in (again, limit)]
    assert timeless[0] == timeless[1]


def _timeless(limit):
    tuning = dataclasses.replace(limit.evidence.retuned, seconds=0.0)
    evidence = dataclasses.replace(without_cost(limit).evidence, retuned=tuning)
    return evidence.retuned, evidence.points, limit.sparsity


def test_without_re_tuning_everything_else_is_the_same(problem, limit):
    plain = predict_limit(*problem, **QUICK, **DROP)
    assert plain.evidence.retuned is None
    assert [answer.rung for answer in plain.answers] == ["one-shot", "re-trained", "bound", "formula"]
    assert [answer.rung for answer in limit.answers] == ["one-shot", "re-tuned", "re-trained", "bound", "formula"]
    for rung in ("one-shot", "formula"):
        assert plain.answer(rung) == limit.answer(rung)
    assert ggn_limit(plain) == ggn_limit(limit)
    assert (plain.evidence.points, plain.epsilon, plain.upper) == (limit.evidence.points, limit.epsilon, limit.upper)


def test_held_out_data_are_never_trained_on_nor_stopped_by(problem):
    """Other held-out labels leave every re-tuned network of the same way as it is."""
    model, data = problem
    poisoned = [(x, (y + 1) % 3) for x, y in data]
    rises = []
    for held_out in (data, poisoned):
        limit = predict_limit(model, data, **QUICK, metric="accuracy", held_out=held_out, epsilon=0.05, retune=SMALL)
        rises.append([(point.sparsity, point.rise) for point in limit.evidence.retuned.points])
    assert rises[0] == rises[1]


def test_several_runs_give_an_interval_of_their_spread(problem):
    limit = predict_limit(*problem, **QUICK, epsilon=0.05, retune=dataclasses.replace(SMALL, seeds=2))
    tuning, answer = limit.evidence.retuned, limit.answer("re-tuned")
    assert tuning.runs == [0, 1]
    ends = [max(point.sparsity for point in tuning.run(run) if point.rise <= 0.05) for run in tuning.runs]
    assert answer.sparsity == min(ends)
    assert answer.high >= max(ends)
    assert "in each of 2 runs" in answer.status


def test_what_if_reads_re_tuned_networks_like_those_pruned_in_one_shot(by_loss):
    rises = sorted({point.rise for point in by_loss.evidence.retuned.points})
    for epsilon in (0.01, 0.03, *(rise * 1.0001 for rise in rises)):
        answer = by_loss.what_if(epsilon=epsilon)
        passing = [answer.lower]
        for point in by_loss.evidence.retuned.points:
            if point.rise > epsilon:
                break
            passing.append(point.sparsity)
        assert answer.answer("re-tuned").sparsity == max(passing)
    scaled = by_loss.what_if(curvature_scale=2.0)
    assert scaled.evidence.retuned is None
    assert scaled.answer("re-tuned").status == "nothing was re-tuned under these conditions"
    assert by_loss.what_if() == by_loss


def test_a_network_that_re_tuning_does_not_help_says_so(by_loss):
    answer = by_loss.what_if(epsilon=1e-6).answer("re-tuned")
    assert answer.sparsity == by_loss.what_if(epsilon=1e-6).lower
    assert "pruning alone reaches as far" in answer.status


def test_it_is_told_in_words_and_comes_back_from_a_file(limit, tmp_path):
    limit.to_json(tmp_path / "limit.json")
    again = PruningLimit.from_json(tmp_path / "limit.json")
    assert again == limit
    assert again.evidence.retuned == limit.evidence.retuned
    assert "re-tuned, 256 samples" in limit.summary()
    assert "setting retune" in limit.details()
    target = (limit.lower + limit.answer("re-tuned").sparsity) / 2
    verdict = limit.check(target)
    assert verdict.status == "open"
    assert "re-tuning reaches it" in verdict.reason
    assert verdict.margin == pytest.approx(limit.answer("re-tuned").sparsity - target)


@pytest.mark.parametrize("change", [{"sparsity": 1.5}, {"start": -0.1}])
def test_damaged_files_are_refused(limit, tmp_path, change):
    text = limit.to_json()
    plain = __import__("json").loads(text)
    plain["evidence"]["retuned"]["points"][0] |= change
    (tmp_path / "limit.json").write_text(__import__("json").dumps(plain))
    with pytest.raises(UserError, match=r"is damaged \(re-tuned networks are beyond 0 to 1\)"):
        PruningLimit.from_json(tmp_path / "limit.json")


def predicted(checkpoint, told=False):
    torch.set_num_threads(1)
    model, data = classes(normalised=True)
    options = QUICK | {"progress": told}
    limit = predict_limit(model, data, **options, **DROP, retune=SMALL, checkpoint=checkpoint)
    return _timeless(limit)


def die_at(checkpoint, number):
    def told(stage, done, total):
        if stage == "re-tuned networks" and done > number:
            os.kill(os.getpid(), signal.SIGKILL)

    predicted(checkpoint, told)


@pytest.mark.usefixtures("one_thread")
def test_killed_it_resumes_to_the_same_bits(forking, tmp_path):
    whole = predicted(None)
    for number in (0, 1, 2):
        checkpoint = tmp_path / f"{number}.pt"
        process = forking.Process(target=die_at, args=(checkpoint, number))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        assert predicted(checkpoint) == whole


class CtrlC:
    """Interrupts a prediction some calls of the loss after so many networks were re-tuned."""

    def __init__(self, networks, calls):
        self.networks, self.calls = networks, calls

    def told(self, stage, done, total):
        if stage == "re-tuned networks" and done >= self.networks and self.calls is not None:
            self.networks = -1

    def loss(self, model, batch):
        if self.networks == -1:
            self.calls -= 1
            if self.calls == 0:
                self.networks = self.calls = None
                raise KeyboardInterrupt
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def by(interrupting, checkpoint=None):
    model, data = classes(normalised=True)
    before = snapshot(model)
    limit = predict_limit(
        model,
        data,
        interrupting.loss,
        **QUICK | {"progress": interrupting.told},
        **DROP,
        retune=dataclasses.replace(SMALL, seeds=2),
        checkpoint=checkpoint,
    )
    assert same(snapshot(model), before)
    return limit


@pytest.fixture(scope="module")
def uninterrupted():
    torch.set_num_threads(1)
    return by(CtrlC(math.inf, None))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("networks", "calls"), [(1, 1), (1, 20), (2, 45), (3, 7)])
def test_ctrl_c_keeps_what_was_measured_and_a_checkpoint_continues_to_the_same_bits(
    uninterrupted, tmp_path, networks, calls
):
    limit = by(CtrlC(networks, calls), tmp_path / "run.pt")
    tuning, whole = limit.evidence.retuned, uninterrupted.evidence.retuned
    assert networks <= len(tuning.points) < len(whole.points)
    assert set(tuning.points) < set(whole.points)
    passing = [point.sparsity for point in tuning.points if point.drop <= DROP["max_drop"]]
    assert limit.answer("re-tuned").sparsity == max([limit.lower, *passing])
    assert [note for note in limit.notes if note.startswith("re-tuning was interrupted")]
    assert not [note for note in uninterrupted.notes if "interrupted" in note]
    assert _timeless(by(CtrlC(math.inf, None), tmp_path / "run.pt")) == _timeless(uninterrupted)


def test_ctrl_c_before_the_first_network_leaves_the_rung_unknown(uninterrupted):
    limit = by(CtrlC(0, 10))
    assert limit.evidence.retuned is None
    assert limit.answer("re-tuned").basis == "unknown"
    for rung in ("one-shot", "formula"):
        assert limit.answer(rung) == uninterrupted.answer(rung)
    assert ggn_limit(limit) == ggn_limit(uninterrupted)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    predicted(path)
    stored = load_tensors(path)
    del stored["states"]["re-tuned 0"]["numbers"]
    save_tensors(path, stored)
    with pytest.raises(UserError, match=r"^checkpoint: what it holds of re-tuning is damaged"):
        predicted(path)
