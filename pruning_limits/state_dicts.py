"""Find the weights of a model in a checkpoint, under any key and prefix, and load all of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from estimators import UserError
from estimators.files import load_tensors

DEEPEST = 2
MOST_NAMED = 5


@dataclass(frozen=True)
class Match:
    """An entry of a checkpoint next to the state dict of a model.

    Attributes:
        entry: Keys that lead to it, joined by ``/``; empty for the checkpoint itself.
        state: The model's state by its own keys.
        remarks: What was changed on the way.
        problems: Why it is not a state dict of this model: keys by kind; empty where it is one.
        shapes: Shapes of tensors that are of another shape than the model's, by its keys.
    """

    entry: str
    state: dict[str, Any]
    remarks: tuple[str, ...]
    problems: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def load_weights(model: nn.Module, path: Path) -> str:
    """Load a checkpoint into a model; all keys and shapes must fit.

    The weights may be the file itself or the one entry, at most two keys deep, that is a state dict of this model. A
    prefix that all keys have in common (``module.``, ``_orig_mod.``, ``model.``) is stripped, the masks of
    ``torch.nn.utils.prune`` are applied, the second name of a tied tensor may be missing, and whole-number buffers
    that the model lacks are left out.

    Args:
        model: Any module; unchanged when the checkpoint does not fit.
        path: A PyTorch checkpoint of plain tensors, or a ``.safetensors`` file.

    Returns:
        What was done beside loading, in one line; empty where the file is the state dict as it is.

    Raises:
        UserError: The file holds more than plain tensors, no state dict of this model (the message names keys), or
            several that differ.
    """
    match = matching_state(load_tensors(path), model, path)
    model.load_state_dict(match.state)
    remarks = (f"took the entry {match.entry}", *match.remarks) if match.entry else match.remarks
    return f"checkpoint {path}: {', '.join(remarks)}" if remarks else ""


def matching_state(stored: Mapping[Any, Any], model: nn.Module, path: str | Path = "") -> Match:
    """Find the state dict of a model in a checkpoint.

    Args:
        stored: Content of the checkpoint.
        model: The model; unchanged.
        path: Name of the checkpoint, for messages.

    Returns:
        The one entry that fits.

    Raises:
        UserError: None fits, or several that differ.

    Example:
        >>> stored = {"epoch": 3, "model_state_dict": {"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}}
        >>> match = matching_state(stored, nn.Linear(2, 1))
        >>> match.entry, list(match.state), match.remarks
        ('model_state_dict', ['weight', 'bias'], ('stripped the prefix module. from all keys',))
    """
    own = model.state_dict()
    matches = [_matched(entry, state, own) for entry, state in _entries(stored)]
    fitting = [match for match in matches if not match.problems]
    if not fitting:
        nearest = min(matches, key=lambda match: sum(map(len, match.problems.values())))
        problems = "; ".join(f"{kind} {_listed(keys)}" for kind, keys in nearest.problems.items())
        where = f"the entry {nearest.entry} of {path}" if nearest.entry else path
        raise UserError(f"checkpoint: {where} does not fit the model: {problems}")
    if any(not _equal(fitting[0].state, match.state) for match in fitting[1:]):
        raise UserError(
            f"checkpoint: {path} holds several networks that fit the model, {_listed([m.entry for m in fitting])}; "
            "save one of them alone"
        )
    return fitting[0]


def other_shapes(stored: Mapping[Any, Any], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint that is a state dict of this model but for the sizes of its tensors.

    Args:
        stored: Content of the checkpoint.
        model: The model; unchanged.

    Returns:
        Shapes by the keys of the model, where they differ; empty where nothing or more than that differs.

    Example:
        >>> other_shapes({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, nn.Linear(2, 3))
        {'weight': (1, 2), 'bias': (1,)}
    """
    own = model.state_dict()
    matches = [_matched(entry, state, own) for entry, state in _entries(stored)]
    nearest = min(matches, key=lambda match: sum(map(len, match.problems.values())))
    return nearest.shapes if set(nearest.problems) == {"of another shape"} else {}


def _entries(stored: Mapping[Any, Any], entry: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the checkpoint and the mappings with tensors in it."""
    if not entry or any(isinstance(value, Tensor) for value in stored.values()):
        yield entry, stored
    for key, value in stored.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _entries(value, f"{entry}/{key}" if entry else str(key), depth + 1)


def _matched(entry: str, stored: Mapping[Any, Any], own: Mapping[str, Any]) -> Match:
    """Compare an entry with a model's state, under the prefix that leaves the fewest problems."""
    stored = without_masks(stored)
    floats = [key for key, value in stored.items() if isinstance(key, str) and not _whole_numbers(value)]
    prefixes = [""]
    for names in zip(*(key.split(".")[:-1] for key in floats), strict=False):
        if len(set(names)) > 1:
            break
        prefixes.append(f"{prefixes[-1]}{names[0]}.")
    matches = [_compared(entry, stored, own, prefix) for prefix in prefixes]
    return min(matches, key=lambda match: sum(map(len, match.problems.values())))


def _compared(entry: str, stored: Mapping[Any, Any], own: Mapping[str, Any], prefix: str) -> Match:
    state = {key.removeprefix(prefix) if isinstance(key, str) else key: value for key, value in stored.items()}
    remarks = [f"stripped the prefix {prefix} from all keys"] if prefix else []
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": [], "tied but unequal": []}
    chosen: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tied: list[str] = []
    names_of: dict[Any, list[str]] = {}
    for key, tensor in own.items():
        names_of.setdefault(_memory(tensor), []).append(key)
    for key, tensor in own.items():
        twins = [twin for twin in names_of[_memory(tensor)] if twin != key and twin in state]
        if key not in state and twins:
            tied.append(f"{key} is tied to {twins[0]}")
            chosen[key] = state[twins[0]]
        elif key not in state and key.endswith("num_batches_tracked"):
            chosen[key] = tensor
        elif key not in state:
            problems["missing"].append(key)
        elif getattr(state[key], "shape", None) != getattr(tensor, "shape", None):
            problems["of another shape"].append(key)
            shapes[key] = tuple(getattr(state[key], "shape", ()))
        elif any(isinstance(state[twin], Tensor) and not torch.equal(state[twin], state[key]) for twin in twins):
            problems["tied but unequal"].append(key)
        else:
            chosen[key] = state[key]
    aliases, whole, loaded = [], [], {_memory(value) for value in chosen.values()}
    for key, value in state.items():
        if key in own:
            continue
        if _memory(value) in loaded:
            aliases.append(key)
        elif _whole_numbers(value):
            whole.append(key)
        else:
            problems["unexpected"].append(str(key))
    for what, names in (("", tied), ("left out second names ", aliases), ("left out whole-number buffers ", whole)):
        if names:
            remarks.append(what + _listed(names))
    return Match(entry, chosen, tuple(remarks), {kind: keys for kind, keys in problems.items() if keys}, shapes)


def _whole_numbers(value: object) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _memory(value: object) -> object:
    """Return what two tensors have in common when they are views of the same numbers, as those of tied layers are."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.numel() == 0 or value.is_meta:
        return id(value)
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(isinstance(second[key], Tensor) and torch.equal(value, second[key]) for key, value in first.items())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def without_masks(state: Mapping[Any, Any]) -> dict[Any, Any]:
    r"""Apply the masks that ``torch.nn.utils.prune`` left in a state dict.

    Every pair ``NAME_orig`` and ``NAME_mask`` becomes their product under ``NAME``; all else stays.

    Args:
        state: State dict of a module.

    Returns:
        The state dict that the module would have after ``torch.nn.utils.prune.remove``.

    Raises:
        UserError: A mask and its weight differ in shape.

    Example:
        >>> import torch
        >>> without_masks({"weight_orig": torch.tensor([2.0, 3.0]), "weight_mask": torch.tensor([0.0, 1.0])})
        {'weight': tensor([0., 3.])}
    """
    result = dict(state)
    for key in state:
        name = key.removesuffix("_orig") if isinstance(key, str) else ""
        weight, mask = state[key], state.get(f"{name}_mask")
        if name != key and isinstance(weight, Tensor) and isinstance(mask, Tensor):
            if weight.shape != mask.shape:
                raise UserError(
                    f"checkpoint: {name}_mask has shape {tuple(mask.shape)}, its weight {tuple(weight.shape)}; "
                    "save the pruned network again"
                )
            del result[key], result[f"{name}_mask"]
            result[name] = weight * mask
    return result
