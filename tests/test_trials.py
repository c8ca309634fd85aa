import torch
from helpers import random, seeded
from torch import nn
from torch.nn.utils import prune

from estimators import Objective
from pruning_limits.trials import Trial, masked, same_outputs


def objective():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3)))
    prune.l1_unstructured(model[0], "weight", 5)
    return Objective(model, [(random(20, 6), torch.arange(20) % 3)])


def test_a_few_samples_are_passed_in_evaluation_mode_and_copies_have_no_masks():
    trial = Trial(objective())
    assert len(trial.batch[0]) == 4
    copied = trial.copied(trial.objective.model)
    assert "weight" in dict(copied[0].named_parameters())
    first, second = trial.results(copied), trial.results(trial.objective.model.eval())
    assert same_outputs(first, second, torch.float64)
    assert [tensor.shape for tensor in first] == [(4, 3), (4,)]
    assert trial.traced(copied, trial.batch).grad_fn is not None


def test_masks_by_stored_name_put_zeros():
    trial = Trial(objective())
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[:, :3] = False
    result = masked(trial, {"0.weight_orig": mask})
    assert not result[0].weight[:, :3].any()
    assert torch.equal(result[0].weight[:, 3:], trial.objective.chosen["0.weight_orig"][:, 3:])


def test_losses_stand_for_outputs_where_the_network_is_not_called_whole():
    def loss(model, batch):
        return nn.functional.cross_entropy(model[2](model[0](batch[0])), batch[1], reduction="none")

    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 3)))
    plain = Objective(model, [(random(20, 6), torch.arange(20) % 3)], loss)
    trial = Trial(plain)
    assert [tensor.shape for tensor in trial.results(plain.model)] == [(4,)]


def test_outputs_of_other_sizes_or_values_are_told_apart():
    ones = torch.ones(3)
    assert same_outputs([ones], [ones + 1e-9], torch.float64)
    assert not same_outputs([ones], [ones + 1e-6], torch.float64)
    assert same_outputs([ones], [ones + 1e-6], torch.float32)
    assert not same_outputs([ones], [torch.ones(2)], torch.float64)
    assert not same_outputs([ones], [ones, ones], torch.float64)
    assert not same_outputs([ones * float("nan")], [ones], torch.float64)
