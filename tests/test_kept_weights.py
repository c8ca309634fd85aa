from __future__ import annotations

import torch
from helpers import assert_close, seeded
from torch import nn

from estimators import L1
from pruning_limits import predict_limit
from validation.data import ImageData
from validation.masks import select
from validation.models import build_model
from validation.pruners.magnitude import magnitude_masks
from validation.studies.lottery.kept_weights import KeptWeights
from validation.training import apply_masks


def test_the_spectrum_is_that_of_the_kept_block_of_the_hessian() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 4, generator=generator).double(), torch.randint(0, 3, (30,), generator=generator)
    masks = magnitude_masks(model, 0.6)
    apply_masks(model, masks)
    shapes = [model[0].weight.shape, model[2].weight.shape]
    biases = {"0.bias": model[0].bias, "2.bias": model[2].bias}

    def loss(vector: torch.Tensor) -> torch.Tensor:
        first, second = vector.split([shape.numel() for shape in shapes])
        weights = {"0.weight": first.view(shapes[0]), "2.weight": second.view(shapes[1])}
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights | biases, (x,)), y)

    weights = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).detach()
    kept = torch.cat([masks["0.weight"].flatten(), masks["2.weight"].flatten()])
    hessian = torch.autograd.functional.hessian(loss, weights)[kept][:, kept]
    module = KeptWeights(model, masks)
    limit = predict_limit(module, [(x, y)], parameters=module.chosen, epsilon=0.01, progress=False)
    assert limit.parameters == int(kept.sum())
    assert_close(limit.evidence.hessian.measure.nodes, torch.linalg.eigvalsh(hessian).detach())
    assert_close(module(x), model(x))
    assert [name for name, _ in module.named_modules()] == [""]


def test_with_all_weights_kept_it_is_the_network_itself(digits: ImageData) -> None:
    model = build_model("fc3-tiny", digits.shape, digits.classes, 0).eval()
    module = KeptWeights(model, select({name: p for name, p in model.named_parameters() if p.dim() > 1}, 0.0))
    own, whole = (
        predict_limit(
            network,
            digits.batches("train", 1000),
            parameters=names,
            penalty=L1(1e-3),
            steps=8,
            probes=1,
            progress=False,
        )
        for network, names in ((module, module.chosen), (model, None))
    )
    assert_close(own.objective, whole.objective, torch.float32)
    assert_close(own.sparsity, whole.sparsity, torch.float32)
    assert_close(own.retrained, whole.retrained, torch.float32)
