import pytest
import torch
from helpers import small_limit
from safetensors.torch import save_file
from torch import nn

from estimators import UserError
from pruning_limits.mask_files import attach, check_fit, load_masks, save_masks


def network():
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


@pytest.mark.parametrize("pattern", ["unstructured", "1:2", "channels"])
def test_masks_of_a_limit_go_through_a_file_to_torch(pattern, tmp_path):
    masks = small_limit(pattern=("unstructured", "1:2", "channels")).for_pattern(pattern).mask(0.5)
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())
    model = network()
    dense = {name: model.get_parameter(name).detach().clone() for name in masks}
    attach(model, loaded)
    for name, mask in masks.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        assert torch.equal(layer.weight, dense[name] * mask)
        assert torch.equal(layer.weight_mask.bool(), mask)


def test_masks_of_another_network_are_refused():
    with pytest.raises(UserError, match=r"^masks: other\.weight has shape \(2,\), the model has no such parameter$"):
        attach(network(), {"other.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"has shape \(3, 3\), the model has a parameter of shape \(12, 6\)$"):
        check_fit(network(), {"0.weight": torch.ones(3, 3, dtype=torch.bool)})


def test_files_that_hold_no_masks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^masks: cannot read "):
        load_masks(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "floats.safetensors")
    with pytest.raises(UserError, match=r"holds w of type torch\.float32, expected bool masks$"):
        load_masks(tmp_path / "floats.safetensors")
