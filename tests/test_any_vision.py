"""Limits of torchvision networks at low resolution and of networks built as timm builds them."""

import pytest
import torch
import torchvision
from any_model import Case, check
from helpers import assert_close, random, seeded
from torch import nn
from torch.nn import functional

from estimators import GGN, Hessian, Objective

MODELS = torchvision.models


def images(size, samples=3, classes=3):
    return lambda: [(random(samples, 3, size, size), torch.arange(samples) % classes)]


def entropies(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def vision(build, size, dimension=None, **options):
    return Case(build, images(size), entropies, dimension, options={"measure": False} | options)


def densenet():
    return MODELS.DenseNet(growth_rate=2, block_config=(1, 2), num_init_features=4, bn_size=2, num_classes=3)


def vit():
    return MODELS.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=4, mlp_dim=6, num_classes=3
    )


class SqueezeExcite(nn.Module):
    """Building blocks of timm: depth-wise convolution, hard activations, layer scale, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.Hardswish(inplace=True)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.depthwise(x)
        squeezed = self.expand(functional.relu(self.reduce(y.mean((2, 3), keepdim=True))))
        y = y * functional.hardsigmoid(squeezed) * self.scale
        if self.training:
            y = y * torch.bernoulli(torch.full((len(y), 1, 1, 1), 0.5))
        return self.head((x + y).mean((2, 3)))


def by_hand(model, batch):
    """``SqueezeExcite`` without ``hardsigmoid``, whose second derivative torch does not have."""
    x = functional.hardswish(model.norm(model.stem(batch[0])))
    y = model.depthwise(x)
    gate = (model.expand(functional.relu(model.reduce(y.mean((2, 3), keepdim=True)))) + 3).clamp(0, 6) / 6
    logits = model.head((x + y * gate * model.scale).mean((2, 3)))
    return functional.cross_entropy(logits, batch[1], reduction="none")


CASES = {
    "squeezenet": vision(lambda: MODELS.squeezenet1_1(num_classes=3), 32),
    "shufflenet": vision(lambda: MODELS.shufflenet_v2_x0_5(num_classes=3), 32),
    "resnet18": vision(
        lambda: MODELS.resnet18(num_classes=3), 32, 256 * 512, parameters="layer4.0.downsample.0.weight"
    ),
    "mobilenet v3": vision(
        lambda: MODELS.mobilenet_v3_small(num_classes=3), 32, 2 * 24 * 96, parameters="features.4.block.2.fc?.weight"
    ),
    "densenet": vision(densenet, 16),
    "vit": vision(vit, 8, 4 * 3 * 16 + 3 * 16 + 16 + 2 * 24 + 12),
    "timm-like": Case(SqueezeExcite, images(7), by_hand, 4 * 27 + 4 * 9 + 8 + 8 + 12),
}


@pytest.mark.parametrize("name", CASES)
def test_limit(name):
    check(CASES[name])


def test_auxiliary_outputs_are_off_in_evaluation_mode():
    """GoogLeNet returns three tensors in training mode and one in evaluation mode, in which it is looked at."""
    model = seeded(lambda: MODELS.googlenet(num_classes=3, aux_logits=True, init_weights=False)).train()
    objective = Objective(model, images(32)(), parameters="inception5b.branch1.conv.weight")
    vector = random(objective.dimension)
    assert_close(Hessian(objective) @ vector, GGN(objective) @ vector)  # piecewise linear behind the last convolutions
    assert model.training
    assert Objective(model, images(32)()).dimension == sum(p.numel() for p in model.parameters() if p.dim() > 1)


class Segmenting(nn.Module):
    """Returns a dictionary as torchvision's segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.backbone, self.classifier, self.aux = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        features = torch.tanh(self.backbone(x))
        return {"out": self.classifier(features), "aux": self.aux(features)}


def pixels(model, batch):
    return functional.cross_entropy(model(batch[0])["out"], batch[1], reduction="none").mean((1, 2))


def labelled_pixels():
    return [(random(2, 3, 5, 5), torch.arange(50).reshape(2, 5, 5) % 3)]


def test_segmentation_by_the_default_loss():
    check(Case(Segmenting, labelled_pixels, pixels, 4 * 27 + 12 + 12))


def test_segmentation_with_auxiliary_scores():
    """The GGN of both score maps is the sum of their own, because the loss adds them up."""

    def both(model, batch):
        scores = model(batch[0])
        return sum(functional.cross_entropy(scores[name], batch[1], reduction="none").mean((1, 2)) for name in scores)

    def auxiliary(model, batch):
        return functional.cross_entropy(model(batch[0])["aux"], batch[1], reduction="none").mean((1, 2))

    check(Case(Segmenting, labelled_pixels, both, 4 * 27 + 12 + 12, loss_fn=both))
    model, batches = seeded(Segmenting), labelled_pixels()
    total, main, aux = (GGN(Objective(model, batches, loss)) for loss in (both, None, auxiliary))
    vector = random(132)
    assert_close(total @ vector, main @ vector + aux @ vector)
