"""Uses of weights against the operation counter of PyTorch and against counting by hand."""

import pytest
import torch
from helpers import CASES, random, seeded, snapshot
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from estimators import Objective
from pruning_limits.weight_uses import weight_uses
from validation.macs import layer_macs
from validation.models import build_model


def objective(model, x, classes=3):
    def loss(model, batch):
        output = model(batch[0])
        return nn.functional.cross_entropy(output.flatten(1)[:, :classes], batch[1], reduction="none")

    return Objective(model, [(x, torch.arange(len(x)) % classes)], loss)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), (5,)),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2)), (2, 7, 6)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1, groups=2)), (4, 5, 5)),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.ReLU()), (2, 4, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (5, 4)),
    ],
)
def test_sums_are_those_of_the_operation_counter(build, shape):
    model, x = seeded(build), random(2, *shape)
    part = objective(model, x)
    uses = weight_uses(part)
    macs = sum(uses[name] * weight.numel() for name, weight in part.chosen.items())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * 2 * macs == counter.get_total_flops()


def test_networks_of_the_suites_agree_with_the_counter_of_the_validation():
    for name, shape in (("mnistnet", (1, 28, 28)), ("resnet8", (3, 16, 16)), ("fc5-mini", (1, 8, 8))):
        model = build_model(name, shape, 4)
        part = Objective(model, [(random(3, *shape).float(), torch.arange(3))])
        expected = {f"{layer.name}.weight": layer.macs / layer.weights for layer in layer_macs(model, shape)}
        assert weight_uses(part) == expected


def test_attention_uses_its_weights_once_per_token():
    case = CASES["multi-head attention"]
    uses = weight_uses(Objective(case.model(), case.loader(), case.loss_fn, parameters="*"))
    assert uses["attend.in_proj_weight"] == 3
    assert uses["attend.out_proj.weight"] == 3
    assert uses["head.weight"] == 1
    assert uses["head.bias"] is None


def test_a_layer_that_is_called_twice_counts_twice_and_an_idle_one_is_unknown():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.idle = nn.Linear(3, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(torch.tanh(self.a(x)))

    part = objective(seeded(Twice), random(4, 3))
    before = snapshot(part.model)
    assert weight_uses(part) == {"a.weight": 2.0, "idle.weight": None}
    assert not any(module._forward_hooks for module in part.model.modules())
    after = snapshot(part.model)
    assert str(before) == str(after)


def test_masks_of_torch_and_the_layers_of_gpt():
    from torch.nn.utils import prune

    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    prune.l1_unstructured(model[0], "weight", 3)
    assert weight_uses(objective(model, random(2, 5))) == {"0.weight_orig": 1.0, "2.weight": 1.0}
    layers = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(layers.Conv1D(6, 4), nn.Linear(6, 3)).double()
    assert weight_uses(objective(model, random(2, 5, 4))) == {"0.weight": 5.0, "1.weight": 5.0}
