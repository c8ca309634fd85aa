"""Exports, each read back with the package that they are for where it is installed, else against its schema."""

import json
import warnings

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn

from estimators import UserError
from pruning_limits import predict_limit
from pruning_limits.exports import LayerRatios, nncf_masks, ratios_of

ASKED = ("unstructured", "2:4", "channels")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.Tanh(), nn.Flatten()
        )
        self.hidden, self.head = nn.Linear(96, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.body(x))))


@pytest.fixture(scope="module")
def data():
    return [(random(20, 4, 6, 6, seed=1).float(), torch.arange(20) % 3)]


@pytest.fixture(scope="module")
def model():
    return seeded(Network).float().eval()


@pytest.fixture(scope="module")
def limit(model, data):
    return predict_limit(model, data, epsilon=0.1, pattern=ASKED, steps=4, probes=1, measure=False, progress=False)


@pytest.mark.parametrize("pattern", ASKED)
def test_ratios_are_those_of_the_masks_and_go_through_a_file(limit, pattern, tmp_path):
    own = limit.for_pattern(pattern)
    ratios = ratios_of(own, 0.4)
    masks = own.mask(0.4)
    assert [layer.parameter for layer in ratios.layers] == list(masks)
    for layer in ratios.layers:
        mask = masks[layer.parameter]
        assert (layer.weights, layer.removed) == (mask.numel(), int((~mask).sum()))
        assert layer.ratio == layer.removed / layer.weights
        assert f"{layer.module}.weight" == layer.parameter
    assert ratios.sparsity == own.profile.count(0.4) / limit.parameters
    text = ratios.to_json(tmp_path / "ratios.json")
    assert LayerRatios.from_json(tmp_path / "ratios.json") == ratios
    assert [row["ratio"] for row in json.loads(text)["layers"]] == [layer.ratio for layer in ratios.layers]


@pytest.mark.parametrize("change", [{"format": "x"}, {"layers": [{"parameter": "w"}]}, {"pattern": "rows"}, None])
def test_other_files_are_refused_in_one_line(limit, tmp_path, change):
    path = tmp_path / "ratios.json"
    path.write_text("[]" if change is None else json.dumps(json.loads(ratios_of(limit, 0.4).to_json()) | change))
    with pytest.raises(UserError, match=r"^ratios: .* is no file of format pruning-ratios/1 .*; export it again$"):
        LayerRatios.from_json(path)


# ---------------------------------------------------------------------------------------------- torch-pruning


@pytest.mark.parametrize("sparsity", [0.1, 0.4, 0.7])
def test_torch_pruning_makes_a_network_of_the_same_sizes(limit, model, data, sparsity):
    import copy

    import torch_pruning

    own = limit.for_pattern("channels")
    given = copy.deepcopy(model)
    for parameter in given.parameters():
        parameter.requires_grad_()
    pruner = torch_pruning.pruner.BasePruner(
        given,
        data[0][0][:2],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.0,
        pruning_ratio_dict=ratios_of(own, sparsity).for_torch_pruning(given),
        ignored_layers=[given.head],
    )
    pruner.step()
    expected = own.shrink(model, data, sparsity)
    sizes = [tuple(p.shape) for p in expected.parameters()]
    assert [tuple(p.shape) for p in given.parameters()] == sizes


def test_torch_pruning_takes_channels_of_this_network_only(limit, model):
    with pytest.raises(UserError, match=r"^ratios: torch-pruning removes channels, these are of 2:4"):
        ratios_of(limit.for_pattern("2:4"), 0.4).for_torch_pruning(model)
    ratios = ratios_of(limit.for_pattern("channels"), 0.4)
    with pytest.raises(UserError, match=r"^ratios: .* has \d+ outputs, the model has None there$"):
        ratios.for_torch_pruning(nn.Linear(2, 2))


# --------------------------------------------------------------------------------------------- llm-compressor


@pytest.mark.parametrize("modifier", ["SparseGPTModifier", "WandaPruningModifier"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_recipe_names_every_layer_with_its_share(limit, model, modifier, pattern, tmp_path):
    yaml = pytest.importorskip("yaml")
    import re

    ratios = ratios_of(limit.for_pattern(pattern), 0.4)
    text = ratios.llm_compressor_recipe(modifier, tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == text
    stage = yaml.safe_load(text)["pruning_stage"]
    assert len(stage) == len(ratios.layers)
    for (name, group), layer in zip(stage.items(), ratios.layers, strict=True):
        assert re.fullmatch(r"layer_\d+_modifiers", name)
        ((kind, settings),) = group.items()
        assert kind == modifier
        assert settings["sparsity"] == layer.ratio
        assert settings["mask_structure"] == ("0:0" if pattern == "unstructured" else "2:4")
        (target,) = settings["targets"]
        matches = [path for path, _ in model.named_modules() if re.match(target.removeprefix("re:"), path)]
        assert matches == [layer.module]


@pytest.mark.parametrize("modifier", ["SparseGPTModifier", "WandaPruningModifier"])
def test_llm_compressor_reads_the_recipe(limit, modifier):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = pytest.importorskip("llmcompressor.recipe", exc_type=ImportError).Recipe
        ratios = ratios_of(limit.for_pattern("2:4"), 0.4)
        read = recipe.create_instance(ratios.llm_compressor_recipe(modifier))
    assert [type(layer_modifier).__name__ for layer_modifier in read.modifiers] == [modifier] * len(ratios.layers)
    assert [layer_modifier.sparsity for layer_modifier in read.modifiers] == [layer.ratio for layer in ratios.layers]
    assert {layer_modifier.mask_structure for layer_modifier in read.modifiers} == {"2:4"}


def test_a_recipe_takes_single_weights_or_runs(limit):
    with pytest.raises(UserError, match=r"^ratios: llm-compressor prunes single weights or N:M, these are of"):
        ratios_of(limit.for_pattern("channels"), 0.4).llm_compressor_recipe()
    with pytest.raises(UserError, match=r"^modifier: expected one of SparseGPTModifier, Wanda.*, got 'x'$"):
        ratios_of(limit, 0.4).llm_compressor_recipe("x")


# ------------------------------------------------------------------------------------------------------- NNCF


def test_a_configuration_of_nncf_holds_every_mask(limit):
    masks = limit.mask(0.4)
    config, state = nncf_masks(masks)
    assert json.loads(json.dumps(config)) == config
    assert set(config) == {"compression_state"}
    for row, (name, mask) in zip(config["compression_state"], masks.items(), strict=True):
        assert set(row) == {"hook_names_in_model", "module_path", "module_cls_name", "module_config"}
        (hook,) = row["hook_names_in_model"]
        assert hook == f"post_hooks.{name.replace('.', ':')}__0.0"
        assert row["module_config"] == {"shape": list(mask.shape)}
        assert torch.equal(state[f"__nncf_hooks.{hook}.binary_mask"], mask)


def test_nncf_prunes_as_the_masks_say(limit, model, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nncf = pytest.importorskip("nncf", exc_type=ImportError)
        pytest.importorskip("nncf.torch", exc_type=ImportError)
        import copy

        config, state = nncf_masks(limit.mask(0.4))
        wrapped = nncf.torch.load_from_config(copy.deepcopy(model), config)
        told = wrapped.load_state_dict(state, strict=False)
        assert not told.unexpected_keys
        with torch.no_grad():
            outputs = wrapped(data[0][0])
    assert_close(outputs, limit.prune(model, 0.4)(data[0][0]), torch.float32)
