"""Attention heads: their rows in the query, key and value maps, and the columns that read their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning_limits.groups import NONE, Groups
from pruning_limits.pattern_names import Pattern
from pruning_limits.patterns import Matrix, matrices
from pruning_limits.trials import Trial, masked, same_outputs

if TYPE_CHECKING:
    from estimators import Objective

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "num_q_heads")
FEWER = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
QUERIES = ("q_proj", "query", "q_lin", "to_q", "wq", "q", "query_proj", "q_proj_weight")
KEYS = ("k_proj", "key", "k_lin", "to_k", "wk", "k", "key_proj", "k_proj_weight")
VALUES = ("v_proj", "value", "v_lin", "to_v", "wv", "v", "value_proj", "v_proj_weight")
TOGETHER = ("in_proj_weight", "qkv", "c_attn", "query_key_value", "to_qkv", "in_proj", "qkv_proj", "Wqkv")
OUTPUTS = ("out_proj", "proj", "o_proj", "c_proj", "out_lin", "to_out", "wo", "o", "dense", "out", "output.dense")
UNKNOWN = "no part of an attention whose heads are known"
UNEQUAL = "zeros in its maps and zeros in the columns that read them put out different things"


@dataclass(frozen=True)
class Attention:
    """The parameters of one attention.

    Attributes:
        path: Name of the module.
        heads: Number of groups of heads that go together.
        rows: Names of the maps to queries, keys and values, each with the number of times that the heads are stacked in
            its outputs: 3 where all are in one.
        biases: Names of their biases, likewise.
        columns: Name of the map that reads the heads.
    """

    path: str
    heads: int
    rows: Mapping[str, int]
    biases: Mapping[str, int]
    columns: str


def heads(pattern: Pattern, objective: Objective) -> Groups:
    """Return the heads of the attention layers of a network.

    They are known of ``nn.MultiheadAttention`` and of modules that hold a number of heads and linear layers under
    common names, such as those of transformers. Where fewer keys than queries are computed, a head of keys goes with
    its queries. Every layer is tried on a few samples: zeros in the maps of a head have to put out what zeros in the
    columns that read it do. One head of every layer stays.

    Args:
        pattern: The pattern of heads.
        objective: Network and data.

    Returns:
        The groups.
    """
    trial, chosen = Trial(objective), objective.chosen
    known = matrices(objective.model, chosen)
    rows, columns, companions = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    left, families, count = dict[str, str](), list[Tensor](), 0
    for attention in _attentions(objective.model, trial.stored):
        names = [*attention.rows, attention.columns]
        if any(name not in known or name in columns for name in names):
            continue
        own = _ids(attention, chosen, known)
        if own is None or attention.heads < 2:
            continue
        if not _holds(trial, attention, own, known):
            left |= dict.fromkeys(names, UNEQUAL)
            continue
        for name in (*attention.rows, *attention.biases):
            target = rows if name in chosen else companions  # biases that were chosen count as weights
            target[name] = own[name] + count
        columns[attention.columns] = torch.where(own[attention.columns] == NONE, NONE, own[attention.columns] + count)
        families.append(torch.full((attention.heads,), len(families)))
        count += attention.heads
    left = {name: left.get(name, UNKNOWN) for name in chosen if name not in rows and name not in columns}
    numbers = torch.cat(families) if families else None
    shaped = [_shaped(side, known, chosen, along) for side, along in ((rows, 0), (columns, 1))]
    return Groups(pattern, count, tuple(shaped), companions, numbers, left)


def _shaped(
    side: Mapping[str, Tensor], known: Mapping[str, Matrix], chosen: Mapping[str, Tensor], along: int
) -> dict[str, Tensor]:
    result = {}
    for name, ids in side.items():
        shape = [1] * chosen[name].dim()
        shape[known[name].along(along) if name in known else 0] = -1
        result[name] = ids.reshape(shape)
    return result


def _attentions(model: nn.Module, stored: Mapping[str, str]) -> Iterator[Attention]:
    for path, module in model.named_modules():
        count = _number(module, COUNTS)
        repeats = _parameters(module) if count else None
        parent = model.get_submodule(path.rpartition(".")[0]) if path else module
        if repeats is None or (output := _output(module, parent, path)) is None:
            continue
        prefix = f"{path}." if path else ""
        fewer = _number(module, FEWER) or count
        rows = {stored.get(prefix + name, prefix + name): times for name, times in repeats.items()}
        parameters = dict(model.named_parameters())
        biases = {}
        for name, times in repeats.items():
            bias = prefix + name.removesuffix("weight") + "bias"
            bias = stored.get(bias, bias)
            if bias in parameters:
                biases[bias] = times
        if (
            isinstance(module, nn.MultiheadAttention)
            and "in_proj_weight" not in repeats
            and module.in_proj_bias is not None
        ):
            biases = {stored.get(prefix + "in_proj_bias", prefix + "in_proj_bias"): 3}
        yield Attention(path, fewer, rows, biases, stored.get(output, output))


def _number(module: nn.Module, names: Sequence[str]) -> int:
    """Return a number that a module or its configuration holds under one of some names; 0 where there is none."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _parameters(module: nn.Module) -> dict[str, int] | None:
    """Return the maps to queries, keys and values below a module, with the number of stacks in each."""

    def name_of(names: Sequence[str]) -> str | None:
        for name in names:
            part = getattr(module, name, None)
            if isinstance(part, nn.Parameter):
                return name
            if isinstance(part, nn.Module) and getattr(part, "weight", None) is not None:
                return f"{name}.weight"
        return None

    together = name_of(TOGETHER)
    if together is not None:
        return {together: 3}
    apart = [name_of(names) for names in (QUERIES, KEYS, VALUES)]
    return None if None in apart else {str(name): 1 for name in apart}


def _output(module: nn.Module, parent: nn.Module, path: str) -> str | None:
    """Return the name of the weight that reads the heads, in the module or beside it."""
    for holder, at in ((module, path), (parent, path.rpartition(".")[0])):
        for name in OUTPUTS:
            try:
                part = holder.get_submodule(name)
            except AttributeError:
                continue
            part, name = (part[0], f"{name}.0") if isinstance(part, nn.Sequential) and len(part) else (part, name)
            if isinstance(getattr(part, "weight", None), Tensor):
                return f"{at}.{name}.weight" if at else f"{name}.weight"
    return None


def _ids(attention: Attention, chosen: Mapping[str, Tensor], known: Mapping[str, Matrix]) -> dict[str, Tensor] | None:
    """Return the head of every row, bias and column; None where the sizes do not fit."""

    def stacked(size: int, times: int) -> Tensor | None:
        if size % (times * attention.heads):
            return None
        return torch.arange(attention.heads).repeat_interleave(size // (times * attention.heads)).repeat(times)

    result: dict[str, Tensor | None] = {}
    for name, times in attention.rows.items():
        result[name] = stacked(chosen[name].shape[known[name].outputs], times)
    sizes = [chosen[name].shape[known[name].outputs] for name in attention.rows]
    for (name, times), size in zip(attention.biases.items(), sizes, strict=False):
        result[name] = stacked(3 * size if times == 3 and len(attention.rows) == 3 else size, times)
    result[attention.columns] = stacked(chosen[attention.columns].shape[known[attention.columns].inputs], 1)
    complete = {name: ids for name, ids in result.items() if ids is not None}
    return complete if len(complete) == len(result) else None


def _holds(trial: Trial, attention: Attention, ids: Mapping[str, Tensor], known: Mapping[str, Matrix]) -> bool:
    """Compare zeros in the maps of every second head with zeros in the columns that read them."""
    model = trial.objective.model

    def masks(names: Sequence[str], side: int) -> dict[str, Tensor]:
        result = {}
        for name in names:
            weight = model.get_parameter(name)
            shape = [1] * weight.dim()
            shape[known[name].along(side) if name in known else 0] = -1
            result[name] = (ids[name] % 2 == 0).reshape(shape).to(weight.device).expand(weight.shape)
        return result

    within = trial.results(masked(trial, masks([*attention.rows, *attention.biases], 0)))
    after = trial.results(masked(trial, masks([attention.columns], 1)))
    return same_outputs(within, after, trial.objective.dtype)
