"""Checkpoints as other people write them: found under any key and prefix, loaded whole or refused."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from estimators import UserError
from pruning_limits.state_dicts import load_weights, matching_state, without_masks


class Tied(nn.Module):
    """An embedding whose weights are also those of the output layer."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 3)
        self.lm_head = nn.Linear(3, 7, bias=False)
        self.lm_head.weight = self.wte.weight


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def other_numbers(model):
    """A model of the same kind with other weights and buffers."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for number, tensor in enumerate(changed.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + number)
    return changed


def same(model, state):
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


WRAPPINGS = {
    "plain": (lambda state: state, ""),
    "epoch": (lambda state: {"epoch": 3, "model_state_dict": state}, "took the entry model_state_dict"),
    "optimiser": (
        lambda state: {"net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{}]}},
        "took the entry net",
    ),
    "two deep": (lambda state: {"checkpoint": {"weights": state, "step": 3}}, "took the entry checkpoint/weights"),
    "twice the same": (lambda state: {"last": state, "best": dict(state)}, "took the entry last"),
    "DataParallel": (
        lambda state: {f"module.{key}": value for key, value in state.items()},
        "stripped the prefix module. from all keys",
    ),
    "Lightning, compiled": (
        lambda state: {"state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()}},
        "took the entry state_dict, stripped the prefix model._orig_mod. from all keys",
    ),
    "averaged": (
        lambda state: {"n_averaged": torch.tensor(9)} | {f"module.{key}": value for key, value in state.items()},
        "stripped the prefix module. from all keys, left out whole-number buffers n_averaged",
    ),
    "old batch norm": (
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        "",
    ),
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_weights_are_found_whatever_is_wrapped_around_them(kind, tmp_path):
    wrap, remark = WRAPPINGS[kind]
    model = network()
    wanted = other_numbers(model).state_dict()
    torch.save(wrap(wanted), tmp_path / "net.pt")
    told = load_weights(model, tmp_path / "net.pt")
    assert told == (f"checkpoint {tmp_path / 'net.pt'}: {remark}" if remark else "")
    if kind == "old batch norm":
        wanted = wanted | {"1.num_batches_tracked": torch.tensor(0)}
    assert same(model, wanted)


@pytest.mark.parametrize("missing", ["lm_head.weight", "wte.weight"])
def test_the_second_name_of_a_tied_tensor_may_be_missing(missing, tmp_path):
    model = Tied()
    wanted = other_numbers(model).state_dict()
    save_file({key: value for key, value in wanted.items() if key != missing}, tmp_path / "net.safetensors")
    told = load_weights(model, tmp_path / "net.safetensors")
    (present,) = {"lm_head.weight", "wte.weight"} - {missing}
    assert told.endswith(f": {missing} is tied to {present}")
    assert same(model, wanted)


def test_a_second_name_in_the_file_alone_is_left_out(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    weight = torch.randn(2, 3)
    torch.save({"0.weight": weight, "0.bias": torch.ones(2), "decoder.weight": weight}, tmp_path / "net.pt")
    assert load_weights(model, tmp_path / "net.pt").endswith(": left out second names decoder.weight")
    assert torch.equal(model[0].weight, weight)


def test_equal_numbers_under_another_name_are_no_second_name():
    model = nn.Sequential(nn.Linear(3, 2))
    stored = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2), "1.bias": torch.zeros(2)}
    with pytest.raises(UserError, match=r"does not fit the model: unexpected 1\.bias$"):
        matching_state(stored, model, "net.pt")


def test_tied_weights_that_differ_in_the_file_are_refused():
    stored = {"wte.weight": torch.zeros(7, 3), "lm_head.weight": torch.ones(7, 3)}
    with pytest.raises(UserError, match="tied but unequal"):
        matching_state(stored, Tied(), "net.pt")


def test_several_networks_are_refused_by_name(tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    first = other_numbers(model).state_dict()
    second = {key: value + 1 for key, value in first.items()}
    torch.save({"model": first, "ema": second}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"net\.pt holds several networks that fit the model, model, ema; "):
        load_weights(model, tmp_path / "net.pt")
    assert same(model, before)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("2.bias"), "missing 2.bias"),
        (lambda state: state.update({"3.weight": torch.ones(2)}), "unexpected 3.weight"),
        (lambda state: state.update({"0.weight": torch.ones(3, 5)}), "of another shape 0.weight"),
        (lambda state: state.pop("1.running_mean"), "missing 1.running_mean"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "Lightning, compiled"])
def test_nothing_is_loaded_where_a_key_or_shape_differs(kind, change, problem, tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    state = dict(other_numbers(model).state_dict())
    change(state)
    torch.save(WRAPPINGS[kind][0](state), tmp_path / "net.pt")
    with pytest.raises(UserError) as refusal:
        load_weights(model, tmp_path / "net.pt")
    assert str(refusal.value).endswith(f"does not fit the model: {problem}")
    assert ("the entry state_dict of" in str(refusal.value)) == (kind != "plain")
    assert same(model, before)


def test_a_prefix_of_the_model_itself_stays():
    model = nn.ModuleDict({"model": network()})
    match = matching_state(other_numbers(model).state_dict(), model)
    assert match.remarks == ()
    assert list(match.state) == list(model.state_dict())


# ------------------------------------------------------------------------------------------------------ masks


def test_masks_of_torch_are_applied():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Conv1d(4, 2, 1))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    state = without_masks(model.state_dict())
    for module, name in ((model[0], "weight"), (model[0], "bias"), (model[2], "weight")):
        prune.remove(module, name)
    expected = model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_what_is_no_pair_stays():
    state = {"a_orig": torch.ones(2), "b_mask": torch.ones(2), "c_orig": 1, "c_mask": 2, 3: "x", "_orig": torch.ones(1)}
    assert without_masks(state) == state
    with pytest.raises(UserError, match=r"weight_mask has shape \(2,\), its weight \(3,\)"):
        without_masks({"weight_orig": torch.ones(3), "weight_mask": torch.ones(2)})
