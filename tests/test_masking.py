from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import pytest
import torch
from helpers import BatchNormNet, Tied, same, seeded, snapshot
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from estimators import Objective, UserError
from pruning_limits import predict_limit
from pruning_limits.masking import pruned_copy


def mlp() -> nn.Sequential:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert isinstance(model, nn.Sequential)
    return model


def zeroed(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """Set the smallest entries of some tensors to zero, all of them ranked together."""
    cut = torch.cat([tensor.detach().abs().reshape(-1) for tensor in tensors]).sort().values
    least = cut[count - 1] if count else -1.0
    return [tensor.detach() * (tensor.detach().abs() > least) for tensor in tensors]


@pytest.mark.parametrize(("sparsity", "count"), [(0.0, 0), (0.01, 1), (0.5, 23), (1 / 3, 15), (0.999, 45), (1.0, 45)])
def test_the_smallest_of_all_chosen_weights_are_zero_and_nothing_else_changes(sparsity: float, count: int) -> None:
    model = mlp()
    before = snapshot(model)
    result = pruned_copy(model, ["0.weight", "2.weight"], 45, sparsity)
    assert same(snapshot(model), before)
    expected = zeroed([model[0].weight, model[2].weight], count)
    assert same([result.get_parameter("0.weight").data, result.get_parameter("2.weight").data], expected)
    assert sum(int((weight == 0).sum()) for weight in expected) == count
    assert same([result.get_parameter(name).data for name in ("0.bias", "2.bias")], [model[0].bias, model[2].bias])
    assert all(parameter.requires_grad for parameter in result.parameters())
    assert type(result) is type(model)
    assert not {id(p) for p in result.parameters()} & {id(p) for p in model.parameters()}


def test_only_the_named_weights_are_ranked() -> None:
    model = mlp()
    result = pruned_copy(model, ["2.weight", "2.bias"], 18, 0.5)
    assert torch.equal(result.get_parameter("0.weight"), model[0].weight)
    expected = zeroed([model[2].weight, model[2].bias], 9)
    assert same([result.get_parameter("2.weight").data, result.get_parameter("2.bias").data], expected)


def test_names_are_no_patterns() -> None:
    model = nn.ModuleDict({"a[1]": nn.Linear(2, 2, bias=False), "a1": nn.Linear(2, 2, bias=False)})
    result = pruned_copy(model, ["a[1].weight"], 4, 1.0)
    assert not result.get_parameter("a[1].weight").any()
    assert result.get_parameter("a1.weight").all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    result = pruned_copy(model, ["0.weight"], 30, 0.5)
    assert result.get_parameter("0.weight").dtype == dtype
    assert torch.equal(result.get_parameter("0.weight").data, zeroed([model[0].weight], 15)[0])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_mode_buffers_and_flags_are_those_of_the_model(frozen: bool, training: bool) -> None:
    model = seeded(BatchNormNet).train(training)
    model.get_parameter("first.weight").requires_grad_(not frozen)
    result = pruned_copy(model, ["first.weight", "head.weight"], 63, 0.7)
    assert result.training is training
    assert result.get_parameter("first.weight").requires_grad is not frozen
    assert same(dict(result.named_buffers()), dict(model.named_buffers()))
    expected = zeroed([model.get_parameter("first.weight"), model.get_parameter("head.weight")], 45)
    assert same([result.get_parameter("first.weight").data, result.get_parameter("head.weight").data], expected)


def test_gradients_and_inference_mode_do_not_matter() -> None:
    model = mlp()
    model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
    before = snapshot(model)
    with torch.inference_mode():
        result = pruned_copy(model, ["0.weight"], 30, 0.5)
    assert same(snapshot(model), before)
    assert int((result.get_parameter("0.weight") == 0).sum()) == 15


def test_tied_weights_stay_tied_and_count_once() -> None:
    model = seeded(Tied)
    result = pruned_copy(model, ["encoder.weight"], 16, 0.75)
    assert isinstance(result, Tied)
    assert result.encoder.weight is result.decoder.weight
    assert torch.equal(result.encoder.weight.data, zeroed([model.encoder.weight], 12)[0])  # type: ignore[list-item]


# -------------------------------------------------------------------------------------------- computed weights


@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize(("sparsity", "count"), [(0.2, 15), (0.5, 23), (0.9, 41)])
def test_masks_of_torch_stay_and_what_they_remove_counts_as_removed(passed: bool, sparsity: float, count: int) -> None:
    model, x = mlp(), torch.ones(2, 6, dtype=torch.float64)
    dense = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(30, dtype=torch.float64)
    mask[torch.randperm(30, generator=generator)[:15]] = 0  # large ones among them
    mask = mask.reshape(5, 6)
    prune.custom_from_mask(model[0], "weight", mask)
    if passed:
        model(x)
    before = snapshot(model)
    result = pruned_copy(model, ["0.weight_orig", "2.weight"], 45, sparsity)
    assert same(snapshot(model), before)
    assert isinstance(result, nn.Sequential)
    expected = zeroed([dense[0] * mask, dense[1]], count)
    assert torch.equal(result[0].weight, expected[0])  # also before a pass
    with torch.no_grad():
        result(x)
    assert torch.equal(result[0].weight, expected[0])
    assert torch.equal(result[2].weight, expected[1])
    assert sum(int((weight == 0).sum()) for weight in expected) == count
    assert torch.equal(result.get_buffer("0.weight_mask"), mask)
    prune.remove(result[0], "weight")
    assert torch.equal(result[0].weight, expected[0])


def test_masks_on_masks_stay() -> None:
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 5)
    prune.ln_structured(model[0], "weight", 1, n=2, dim=0)
    effective = model[0].weight.detach().clone()
    result = pruned_copy(model, ["0.weight_orig"], 30, 0.8)
    assert isinstance(result, nn.Sequential)
    assert torch.equal(result[0].weight, zeroed([effective], 24)[0])


def test_a_masked_network_pruned_to_its_limit_loses_what_was_measured() -> None:
    model, generator = mlp(), torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (60,), generator=generator)
    prune.l1_unstructured(model[0], "weight", 8)
    limit = predict_limit(model, [(x, y)], epsilon=0.02)
    result = limit.prune(model, limit.lower)
    with torch.no_grad():
        rise = float(nn.functional.cross_entropy(result(x), y) - nn.functional.cross_entropy(model(x), y))
    measured = {point.sparsity: point.rise for point in limit.evidence.points}
    assert limit.lower > 8 / 45
    assert rise == pytest.approx(measured[limit.lower], abs=1e-12)


def test_of_weight_norm_the_direction_is_pruned() -> None:
    model = nn.Sequential(parametrizations.weight_norm(mlp()[0]))
    name = "0.parametrizations.weight.original1"
    direction = model.get_parameter(name).detach().clone()
    result = pruned_copy(model, [name], 30, 0.5)
    expected = zeroed([direction], 15)[0]
    assert torch.equal(result.get_parameter(name).data, expected)
    assert torch.equal(model.get_parameter(name).data, direction)
    length = model.get_parameter("0.parametrizations.weight.original0").detach()
    layer = result.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(layer.weight, expected * length / expected.norm(dim=1, keepdim=True))


def test_weight_norm_by_hooks_is_copied_and_computed_anew() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(mlp()[0]))
    result = pruned_copy(model, ["0.weight_v"], 30, 0.5)
    expected = zeroed([model.get_parameter("0.weight_v")], 15)[0]
    layer = result.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(
        layer.weight, expected * model.get_parameter("0.weight_g") / expected.norm(dim=1, keepdim=True)
    )
    x = torch.ones(2, 6, dtype=torch.float64)
    assert torch.allclose(result(x), x @ layer.weight.T + model.get_parameter("0.bias"))


# ------------------------------------------------------------------------------------------------ wrong models


def test_a_model_of_other_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model: expected a parameter '2\.weight', as in the network of the limit"):
        pruned_copy(nn.Sequential(nn.Linear(6, 5)), ["0.weight", "2.weight"], 45, 0.5)


def test_a_model_of_another_width_is_refused() -> None:
    model = nn.Sequential(nn.Linear(600, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(UserError, match=r"^model: expected 45 prunable weights, .* got 3,015$"):
        pruned_copy(model, ["0.weight", "2.weight"], 45, 0.5)


@pytest.mark.parametrize("wrong", ["a path", None, {"weight": torch.zeros(2)}])
def test_what_is_no_module_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"^model: expected a torch\.nn\.Module, got "):
        pruned_copy(wrong, ["weight"], 2, 0.5)  # type: ignore[arg-type]


def test_wrapped_models_are_refused() -> None:
    with pytest.raises(UserError, match=r"^model: expected a plain module, got DataParallel; give model\.module$"):
        pruned_copy(nn.DataParallel(mlp()), ["module.0.weight"], 30, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(UserError, match=r"^sparsity: "):
        pruned_copy(mlp(), ["0.weight"], 30, sparsity)


@pytest.mark.parametrize(("value", "text"), [(0.0, "all chosen weights are zero"), (math.nan, "NaN or infinite")])
def test_weights_without_an_order_are_refused(value: float, text: str) -> None:
    model = mlp()
    nn.init.constant_(model[0].weight, value)
    with pytest.raises(UserError, match=f"^model: .*{text}"):
        pruned_copy(model, ["0.weight"], 30, 0.5)


def test_the_meta_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model: lies on the meta device"):
        pruned_copy(mlp().to("meta"), ["0.weight"], 30, 0.5)


def test_the_copy_and_the_objective_agree_on_what_is_removed() -> None:
    model, x = mlp(), torch.ones(4, 6, dtype=torch.float64)
    objective = Objective(model, [(x, torch.arange(4) % 3)])
    weights = objective.vector()
    weights[weights.abs().argsort()[:20]] = 0
    result = pruned_copy(model, objective.names, objective.dimension, 20 / 45)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(result(x), torch.arange(4) % 3)
    assert float(loss) == pytest.approx(objective.value(weights), abs=1e-12)
