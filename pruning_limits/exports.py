"""Removed shares per layer, in the formats of other pruning tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimators.errors import UserError
from estimators.files import path_of, write_bytes
from pruning_limits.pattern_names import parsed
from pruning_limits.serial import read_plain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruning_limits.result import PruningLimit

FORMAT = "pruning-ratios/1"
MODIFIERS = ("SparseGPTModifier", "WandaPruningModifier")
NNCF_MODULE = "nncf.torch.function_hook.pruning.magnitude.modules"
NNCF_CLASS = "UnstructuredPruningMask"


@dataclass(frozen=True)
class LayerRatio:
    """What goes of one layer.

    Attributes:
        parameter: Name of the weight, as ``named_parameters`` tells it.
        module: Name of its module, as ``named_modules`` tells it.
        weights: Number of weights.
        removed: Number of weights that go.
        outputs: Of channels, number of outputs of the module where it is the first of its family; else None.
        removed_outputs: Of channels, number of them that go; else None.
    """

    parameter: str
    module: str
    weights: int
    removed: int
    outputs: int | None = None
    removed_outputs: int | None = None

    @property
    def ratio(self) -> float:
        """Removed share of the weights."""
        return self.removed / self.weights


@dataclass(frozen=True)
class LayerRatios:
    """What goes of every layer of a network.

    Attributes:
        pattern: The pattern of pruning.
        sparsity: Removed fraction of all prunable weights, exact.
        layers: One entry per prunable parameter, in the model's order.
    """

    pattern: str
    sparsity: float
    layers: tuple[LayerRatio, ...]

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the shares as JSON, and write them to a file if one is named.

        The text holds ``format``, ``pattern``, ``sparsity`` and ``layers``; of each layer the attributes of
        ``LayerRatio`` and ``ratio``, its removed share.
        """
        layers = [asdict(layer) | {"ratio": layer.ratio} for layer in self.layers]
        plain = {"format": FORMAT, "pattern": self.pattern, "sparsity": self.sparsity, "layers": layers}
        text = json.dumps(plain, indent=1) + "\n"
        if path is not None:
            write_bytes(path_of("path", path), text.encode())
        return text

    @classmethod
    def from_json(cls, path: str | Path) -> LayerRatios:
        """Read shares that ``to_json`` wrote.

        Raises:
            UserError: The file is missing, damaged or another one.
        """
        plain = read_plain(path_of("path", path))
        try:
            if plain["format"] != FORMAT:
                raise ValueError("another format")
            rows = tuple(
                LayerRatio(**{name: value for name, value in row.items() if name != "ratio"}) for row in plain["layers"]
            )
            if any(not 0 <= row.removed <= row.weights or row.weights < 1 for row in rows):
                raise ValueError("a layer has lost more than it has")
            return cls(parsed(plain["pattern"]).name, float(plain["sparsity"]), rows)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"ratios: {path} is no file of format {FORMAT} ({error}); export it again") from None

    def for_torch_pruning(self, model: nn.Module) -> dict[nn.Module, float]:
        """Return the shares of channels for ``torch_pruning`` pruners.

        Give it as ``pruning_ratio_dict`` with ``pruning_ratio=0`` and ``global_pruning=False``: the pruner then removes
        as many channels of every family.

        Args:
            model: The network that the pruner is given.

        Returns:
            Removed share of outputs by module; of every family by its first module.

        Raises:
            UserError: The shares are those of another pattern or of another network.
        """
        if self.pattern != "channels":
            raise UserError(f"ratios: torch-pruning removes channels, these are of {self.pattern}; see for_pattern")
        modules = dict(model.named_modules())
        result = {}
        for layer in self.layers:
            if layer.outputs is None or layer.removed_outputs is None:
                continue
            module = modules.get(layer.module)
            there = getattr(module, "out_channels", getattr(module, "out_features", None))
            if module is None or there != layer.outputs:
                raise UserError(f"ratios: {layer.module} has {layer.outputs} outputs, the model has {there} there")
            # a pruner keeps int(outputs * (1 - ratio)): half a channel more than what goes would be one more
            result[module] = max(0.0, layer.removed_outputs - 0.25) / layer.outputs
        return result

    def llm_compressor_recipe(self, modifier: str = "SparseGPTModifier", path: str | Path | None = None) -> str:
        """Return a recipe of llm-compressor in YAML: one modifier per layer with its share.

        Args:
            modifier: ``"SparseGPTModifier"`` or ``"WandaPruningModifier"``.
            path: File to write; None only returns the text.

        Raises:
            UserError: The pattern is none that llm-compressor knows, or the modifier is unknown.
        """
        if modifier not in MODIFIERS:
            raise UserError(f"modifier: expected one of {', '.join(MODIFIERS)}, got {modifier!r}")
        pattern = parsed(self.pattern)
        if pattern.kind not in ("unstructured", "n:m"):
            raise UserError(f"ratios: llm-compressor prunes single weights or N:M, these are of {self.pattern}")
        structure = "0:0" if pattern.sizes is None else "{}:{}".format(*pattern.sizes)
        lines = ["pruning_stage:"]
        for number, layer in enumerate(layer for layer in self.layers if layer.removed):
            target = json.dumps(f"re:^{re.escape(layer.module)}$")
            lines += [
                f"  layer_{number}_modifiers:",
                f"    {modifier}:",
                f"      sparsity: {layer.ratio!r}",
                f'      mask_structure: "{structure}"',
                f"      targets: [{target}]",
            ]
        text = "\n".join(lines) + "\n"
        if path is not None:
            write_bytes(path_of("path", path), text.encode())
        return text


def ratios_of(limit: PruningLimit, sparsity: float) -> LayerRatios:
    """Return what goes of every layer at a sparsity of a limit's pattern.

    Args:
        limit: A limit that holds weights.
        sparsity: Removed fraction in [0, 1].

    Raises:
        UserError: The limit holds no weights, or the sparsity is beyond the pattern.
    """
    masks = limit.mask(sparsity)
    profile, outputs = limit.profile, dict[str, tuple[int, int]]()
    groups = None if profile is None else profile.structure.groups.get(limit.pattern)
    if groups is not None and groups.roots:
        gone = profile.gone(sparsity)  # type: ignore[union-attr]
        outputs = {root: (len(ids), int(gone[ids].sum())) for root, ids in groups.roots.items()}
    rows = []
    for name, mask in masks.items():
        module = name.rpartition(".")[0]
        there, lost = outputs.get(module, (None, None))
        rows.append(LayerRatio(name, module, mask.numel(), int((~mask).sum()), there, lost))
    removed = sum(row.removed for row in rows)
    return LayerRatios(limit.pattern, removed / limit.parameters, tuple(rows))


def nncf_masks(masks: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return masks as a configuration and a state of NNCF.

    ``model = nncf.torch.load_from_config(model, config)`` wraps a network with the masks, and
    ``model.load_state_dict(state, strict=False)`` fills them. The configuration is plain values for JSON.

    Args:
        masks: Bool masks by parameter name, as ``limit.mask`` returns them.

    Returns:
        Configuration, and mask tensors by their names in the wrapped network.
    """
    hooks = {name: f"post_hooks.{name.replace('.', ':')}__0.0" for name in masks}
    rows = [
        {
            "hook_names_in_model": [hooks[name]],
            "module_path": NNCF_MODULE,
            "module_cls_name": NNCF_CLASS,
            "module_config": {"shape": list(mask.shape)},
        }
        for name, mask in masks.items()
    ]
    state = {f"__nncf_hooks.{hooks[name]}.binary_mask": mask.clone() for name, mask in masks.items()}
    return {"compression_state": rows}, state
