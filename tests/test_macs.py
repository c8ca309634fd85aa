from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import same, seeded, snapshot
from torch import nn

from estimators import UserError
from validation.macs import layer_macs, total_macs


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (lambda: nn.Linear(6, 4), (6,), [24]),
        (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), [3 * 8 * 9 * 120]),
        (lambda: nn.Conv2d(4, 8, 3, stride=2, groups=2), (4, 9, 9), [2 * 8 * 9 * 16]),
        (lambda: nn.Conv1d(2, 3, 5, dilation=2), (2, 20), [2 * 3 * 5 * 12]),
        (lambda: nn.Linear(5, 2), (7, 5), [70]),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 5)), (1, 5, 5), [162, 90]),
    ],
)
def test_counts_are_those_by_hand(build: Callable[[], nn.Module], shape: tuple[int, ...], expected: list[int]) -> None:
    layers = layer_macs(seeded(build), shape)
    assert [layer.macs for layer in layers] == expected
    assert [layer.kept_macs for layer in layers] == expected
    assert total_macs(layers) == (sum(expected), sum(expected))


def test_removed_weights_save_their_uses() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 5))
    convolution, linear = torch.ones(2, 1, 3, 3, dtype=torch.bool), torch.ones(5, 18, dtype=torch.bool)
    convolution[0, 0, 0] = False
    linear[:, :17] = False
    layers = layer_macs(model, (1, 5, 5), {"0.weight": convolution, "2.weight": linear})
    assert [layer.kept for layer in layers] == [15, 5]
    assert [layer.kept_macs for layer in layers] == [15 * 9, 5]


def test_a_layer_that_runs_twice_counts_twice_and_one_that_never_runs_not_at_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    assert [(layer.name, layer.macs) for layer in layer_macs(Twice(), (4,))] == [("layer", 32)]


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten()))
    model.train()
    model[2].eval()
    before = snapshot(model)
    layer_macs(model, (1, 4, 4))
    assert same(snapshot(model), before)


def test_published_counts_of_known_networks() -> None:
    import torchvision

    with torch.device("meta"):
        alexnet = torchvision.models.alexnet()
    assert total_macs(layer_macs(alexnet, (3, 224, 224)))[0] == 714_188_480


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0.bias": torch.ones(2, dtype=torch.bool)}, "masks: 0.bias is no weight of a convolution or linear layer"),
        ({"9.weight": torch.ones(2, dtype=torch.bool)}, "masks: 9.weight is no weight"),
        (
            {"0.weight": torch.ones(2, dtype=torch.bool)},
            r"masks: 0.weight has shape \(2,\), the weight has \(2, 1, 3, 3\)",
        ),
    ],
)
def test_masks_that_do_not_fit_are_told_in_one_line(masks: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        layer_macs(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 4, 4), masks)
    assert "\n" not in str(caught.value)
