"""
What if
=======

One prediction answers for every epsilon, for larger or smaller weights, and for a steeper or flatter valley.
"""

# %%
# The spectrum and the magnitudes are kept with the limit. ``what_if`` solves the equation again, without a pass over
# the data.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from pruning_limits import predict_limit
from validation.data import load_data
from validation.training import Network, Recipe, trained_network

data = load_data("digits")
network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), seed=0)
model = trained_network(network, data, Path("runs"))
limit = predict_limit(model, data.batches("train"), steps=48, probes=1, progress=False)

# %%
# Allowing more, shrinking the weights and flattening the valley all raise the limit. Weights count twice: half the
# weights are as good as a quarter of the curvature.

factors = np.geomspace(0.1, 10, 21)
questions = {
    "epsilon": [limit.what_if(epsilon=f * limit.epsilon) for f in factors],
    "all weights": [limit.what_if(weight_scale=f) for f in factors],
    "curvature": [limit.what_if(curvature_scale=f) for f in factors],
}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, answers), style in zip(questions.items(), ("-", "--", ":"), strict=True):
    axes.semilogx(factors, [100 * answer.sparsity for answer in answers], style, label=f"{name} times the factor")
axes.axvline(1, color="0.6", linewidth=1)
axes.set(xlabel="factor", ylabel="limit of the formula (%)")
axes.grid(alpha=0.25)
axes.legend()
plt.show()

# %%
# Backwards: what would have to change for 90 %?

print(f"limit of the formula {limit.sparsity:.2%} at epsilon {limit.epsilon:.4f}")
print(f"90 % at epsilon {limit.epsilon_for(0.9):.4f}")
print(f"or with all weights times {limit.weight_scale_for(0.9):.3f}")
print(f"or with the curvature times {limit.curvature_scale_for(0.9):.3f}")
