"""
Layer by layer
==============

Which layers give, and which hold?
"""

# %%
# Global magnitude pruning removes different shares of different layers. ``layer_limits`` asks another question: how far
# can each layer go alone, while all others stay dense, if it may use up the whole epsilon?

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from estimators import Objective
from pruning_limits import predict_limit
from pruning_limits.layerwise import layer_limits
from validation.data import load_data
from validation.training import Network, Recipe, trained_network

data = load_data("digits")
network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), seed=0)
model = trained_network(network, data, Path("runs"))
limit = predict_limit(model, data.batches("train"), steps=48, probes=1, progress=False)
objective = Objective(model, data.batches("train"))
alone = layer_limits(objective, limit.epsilon, steps=24)

# %%
# The share that goes when all layers are pruned together at the limit of the formula, and what each layer allows alone:

rows = list(zip(limit.layers(), alone, strict=True))
print(f"{'layer':12}{'weights':>8}{'together':>10}{'alone':>8}{'measured alone':>16}{'trace':>8}")
for layer, layer_limit in rows:
    print(
        f"{layer.name:12}{layer.weights:8,}{layer.sparsity:10.1%}"
        f"{layer_limit.sparsity:8.1%}{layer_limit.achieved:16.1%}{layer.trace:8.2f}"
    )

# %%
# Pruned alone, every layer reaches less than the formula predicts, by 14 to 27 points here. What is measured counts.

positions = np.arange(len(rows))
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
series = (
    ("all layers together, at the limit", [layer.sparsity for layer, _ in rows], "#0072b2"),
    ("alone, predicted", [layer_limit.sparsity for _, layer_limit in rows], "#d55e00"),
    ("alone, measured", [layer_limit.achieved for _, layer_limit in rows], "#009e73"),
)
for shift, (label, values, colour) in zip((-0.27, 0, 0.27), series, strict=True):
    axes.bar(positions + shift, 100 * np.array(values), 0.26, label=label, color=colour)
axes.set_xticks(positions, [layer.name for layer, _ in rows])
axes.set(ylabel="removed (%)", ylim=(0, 125))
axes.set_yticks(range(0, 101, 20))
axes.legend(ncols=3, fontsize=8, loc="upper center")
plt.show()
