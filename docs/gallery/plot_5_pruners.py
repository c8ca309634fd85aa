"""
Comparing pruners
=================

The limit says how far. Does it matter which algorithm goes there?
"""

# %%
# Three pruners at five sparsities: magnitude pruning in one shot, magnitude pruning with ten more epochs, and random
# masks with ten more epochs.

from pathlib import Path

import matplotlib.pyplot as plt

from pruning_limits import predict_limit
from validation.data import load_data
from validation.pruners import Problem, pruner
from validation.training import Network, Recipe, accuracy, trained_network

data = load_data("digits")
recipe = Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1)
model = trained_network(Network("fc5-mini", "digits", recipe, seed=0), data, Path("runs"))
limit = predict_limit(
    model,
    data.batches("train"),
    metric="accuracy",
    max_drop=0.005,
    held_out=data.batches("test"),
    steps=48,
    probes=1,
    progress=False,
)

sparsities = (0.6, 0.8, 0.9, 0.95, 0.98)
budgets = {"lomp": 60, "gmp": 70, "random": 70}
accuracies = {
    name: [
        accuracy(pruner(name)(Problem("fc5-mini", data, recipe, 0, model, epochs), sparsity).model, data)
        for sparsity in sparsities
    ]
    for name, epochs in budgets.items()
}
for name, values in accuracies.items():
    print(f"{name:8}" + "".join(f"{value:8.1%}" for value in values))

# %%
# The axis is logarithmic in what is kept. One-shot pruning keeps the accuracy to within half a point up to the measured
# limit, and loses it beyond. Training on carries magnitude masks farther, and does not rescue random ones.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
kept = [1 - sparsity for sparsity in sparsities]
labels = {"lomp": "magnitude, one shot", "gmp": "magnitude, 10 more epochs", "random": "random, 10 more epochs"}
for (name, values), marker in zip(accuracies.items(), "osD", strict=True):
    axes.semilogx(kept, [100 * value for value in values], marker + "-", label=labels[name])
marks = (
    ("the paper's formula", limit.sparsity, "--"),
    ("pruned alone, measured", limit.lower, "-."),
    ("re-trained, forecast", limit.retrained, ":"),
)
for label, sparsity, style in marks:
    axes.axvline(1 - sparsity, color="0.4", linestyle=style, label=f"{label} {sparsity:.1%}")
axes.axhline(100 * accuracy(model, data), color="0.8", label="dense")
axes.invert_xaxis()
axes.set_xticks(kept, [f"{sparsity:.0%}" for sparsity in sparsities])
axes.minorticks_off()
axes.set(xlabel="sparsity", ylabel="test accuracy (%)")
axes.legend(fontsize=8)
plt.show()
