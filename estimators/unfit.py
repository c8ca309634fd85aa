"""Models that have no curvature to look at, told apart before anything is computed."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from estimators.errors import UserError

SHARDED = (
    "gather the weights with torch.distributed.checkpoint.state_dict.get_model_state_dict "
    "(full_state_dict=True) and load them into a plain module on every rank"
)


def refuse_unfit(model: nn.Module) -> None:
    """Refuse models that are wrapped for several devices, sharded, quantised, or hold no numbers yet.

    Args:
        model: The model as the user gave it.

    Raises:
        UserError: What the model is and what to do instead.
    """
    for path, module in model.named_modules():
        where, kind = f"layer '{path}'" if path else "the model", type(module)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            there = f"model.{path}" if path else "model"
            raise UserError(f"model: expected a plain module, got {kind.__name__}; give {there}.module")
        if kind.__module__.startswith("torch.distributed.fsdp"):
            raise UserError(f"model: {where} is sharded by {kind.__name__}; {SHARDED}")
        if ".quantized" in kind.__module__ and kind.__module__.startswith("torch."):
            raise UserError(
                f"model: {where} is quantised ({kind.__module__}.{kind.__name__}), so that its weights have no "
                "derivatives; give the floating point network that it was made from"
            )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                raise UserError(
                    f"model: {where} ({kind.__name__}) is not initialised; pass one batch through the model first"
                )
            if hasattr(tensor, "full_tensor"):
                raise UserError(
                    f"model: {name!r} of {where} is a {type(tensor).__name__}, sharded over ranks; {SHARDED}"
                )
