from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close, random
from validation.masks import prunable
from validation.models import MODELS, Shape, build_model
from validation.slim_models import SLIM, SlimRecurrent, _Block, _Residual
from validation.tables.reading import load_suite

DIGITS, MNIST, CIFAR, TEXT = (1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 1, 32)
READERS = [name for name in SLIM if name.startswith("characters")]
VIEWERS = [name for name in SLIM if name not in READERS]


def built(name: str, shape: Shape, classes: int = 7) -> nn.Module:
    return build_model(name, shape, classes).double().eval()


def characters(count: int, classes: int = 50, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (count, *TEXT), generator=generator).double()


# ------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR], ids=str)
@pytest.mark.parametrize("name", VIEWERS)
def test_images_become_logits_and_every_parameter_takes_part(name: str, shape: Shape) -> None:
    model = built(name, shape)
    logits = model(random(4, *shape))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", READERS)
def test_characters_become_scores_at_every_place(name: str) -> None:
    model = built(name, TEXT, 50)
    scores = model(characters(40))
    assert scores.shape == (40, 50, 32)
    nn.functional.cross_entropy(scores, torch.zeros(40, 32, dtype=torch.int64)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_all_of_them_are_models_of_the_suites_and_the_suite_needs_no_other() -> None:
    assert all(MODELS[name] is builder for name, builder in SLIM.items())
    suite = load_suite("forecast")
    used = {network.model for network in suite.networks}
    assert used <= set(MODELS)
    assert len(used & set(SLIM)) > 10


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("lenet-slim", "lenet-wide"),
        ("mobilenet-slim", "mobilenet-wide"),
        ("vit-slim", "vit-wide"),
        ("recurrent-slim", "recurrent-wide"),
        ("characters-slim", "characters-wide"),
        ("fc-narrow", "fc-wide"),
        ("resnet8-slim", "resnet14-slim"),
    ],
)
def test_wide_networks_have_more_weights_than_narrow_ones(narrow: str, wide: str) -> None:
    shape = TEXT if narrow in READERS else DIGITS
    counts = [sum(w.numel() for w in prunable(build_model(name, shape, 10)).values()) for name in (narrow, wide)]
    assert 1.4 * counts[0] < counts[1]


@pytest.mark.parametrize(("name", "layers"), [("resnet8-slim", 8), ("resnet14-slim", 14)])
def test_residual_networks_have_the_layers_of_their_names(name: str, layers: int) -> None:
    shapes = [tuple(weight.shape) for weight in prunable(build_model(name, DIGITS, 10)).values()]
    assert sum(shape[2:] != (1, 1) for shape in shapes) == layers
    assert [shape[:2] for shape in shapes if shape[2:] == (1, 1)] == [(16, 8), (32, 16)]


# ------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("shape", [DIGITS, CIFAR, (2, 5, 7)], ids=str)
def test_the_recurrent_network_is_that_of_torch(shape: Shape) -> None:
    model = built("recurrent-slim", shape)
    assert isinstance(model, SlimRecurrent)
    cell = nn.GRUCell(shape[0] * shape[2], model.width).double()
    update, reset, proposal = (torch.cat([w, b[:, None]], 1) for w, b in _thirds(model.inputs))
    more_update, more_reset = model.gates.weight.chunk(2)
    inputs = torch.cat([reset, update, proposal])  # the order of torch
    with torch.no_grad():
        cell.weight_ih.copy_(inputs[:, :-1])
        cell.bias_ih.copy_(inputs[:, -1])
        cell.weight_hh.copy_(torch.cat([more_reset, more_update, model.candidate.weight]))
        cell.bias_hh.zero_()
    x = random(5, *shape, seed=3)
    state = torch.zeros(5, model.width, dtype=torch.float64)
    for row in range(shape[1]):
        state = cell(x[:, :, row].flatten(1), state)
    assert_close(model(x), model.head(state))


def _thirds(layer: nn.Linear) -> list[tuple[Tensor, Tensor]]:
    return list(zip(layer.weight.chunk(3), layer.bias.chunk(3), strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_attends_as_that_of_torch(causal: bool) -> None:
    torch.manual_seed(0)
    block, attention = _Block(12, causal).double(), nn.MultiheadAttention(12, 2, batch_first=True).double()
    with torch.no_grad():
        for norm in block.norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        attention.in_proj_weight.copy_(block.inputs.weight)
        attention.in_proj_bias.copy_(block.inputs.bias)
        attention.out_proj.load_state_dict(block.outputs.state_dict())
    tokens = random(3, 9, 12)
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1) if causal else None
    normalised = block.norms[0](tokens)
    x = tokens + attention(normalised, normalised, normalised, attn_mask=mask, need_weights=False)[0]
    hidden = block.hidden(block.norms[1](x))
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert_close(block(tokens), x + block.back(gelu))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", [1, 17, 31])
def test_no_character_sees_later_ones(name: str, place: int) -> None:
    model, x = built(name, TEXT, 50), characters(6)
    changed = x.clone()
    changed[..., place:] = (x[..., place:] + 1) % 50
    before, after = model(x), model(changed)
    assert torch.equal(before[..., :place], after[..., :place])
    assert (before[..., place:] != after[..., place:]).any(1).all()


def test_every_character_sees_all_earlier_ones() -> None:
    model, x = built("characters-slim", TEXT, 50), characters(2)
    changed = x.clone()
    changed[..., 0] = (x[..., 0] + 1) % 50
    assert (model(x) != model(changed)).any(1).all()


def test_every_patch_of_a_vision_transformer_reaches_the_logits() -> None:
    model, x = built("vit-slim", DIGITS), random(1, *DIGITS).requires_grad_()
    model(x)[0, 0].backward()
    assert x.grad is not None
    assert x.grad.all()


def test_a_residual_block_adds_to_its_shortcut() -> None:
    torch.manual_seed(0)
    same, stepping = _Residual(4, 4, 1).double().eval(), _Residual(4, 6, 2).double().eval()
    x = random(2, 4, 6, 6)
    for block in (same, stepping):
        nn.init.zeros_(block.norms[1].weight)
    assert_close(same(x), x.clamp(min=0))
    assert_close(
        stepping(x), (stepping.shortcut.weight[:, :, 0, 0] @ x[:, :, ::2, ::2].flatten(2)).clamp(min=0).view(2, 6, 3, 3)
    )


def test_every_second_convolution_of_a_mobile_network_is_depthwise() -> None:
    layers = [layer for layer in build_model("mobilenet-slim", MNIST, 10).modules() if isinstance(layer, nn.Conv2d)]
    kinds = [(layer.groups == layer.in_channels, layer.kernel_size) for layer in layers[1:]]
    assert kinds == 4 * [(True, (3, 3)), (False, (1, 1))]


def test_equal_seeds_give_equal_networks() -> None:
    for name in SLIM:
        shape = TEXT if name in READERS else DIGITS
        states = [build_model(name, shape, 10, seed).state_dict() for seed in (0, 0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(states[0].values(), states[2].values(), strict=True))
