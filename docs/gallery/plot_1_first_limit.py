"""
The first limit
===============

Train a small network, allow it to lose half a point of accuracy, and see how far it can be pruned.
"""

# %%
# The network has 15,000 weights in five layers and is trained with an L1 penalty. ``trained_network`` keeps the weights
# in a folder, so that they are trained once.

from pathlib import Path

from pruning_limits import predict_limit
from validation.data import load_data
from validation.training import Network, Recipe, accuracy, trained_network

data = load_data("digits")
network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), seed=0)
model = trained_network(network, data, Path("runs"))
print(f"test accuracy {accuracy(model, data):.2%}")

# %%
# One call answers. Half a point of the accuracy on held-out images may go. A tolerance of five points is coarse; 128
# steps with one random vector meet it.

limit = predict_limit(
    model,
    data.batches("train"),
    metric="accuracy",
    max_drop=0.005,
    held_out=data.batches("test"),
    tolerance=0.05,
    steps=128,
    probes=1,
    progress=False,
)
print(limit.summary(target=0.8))

# %%
# The line ``pruned, nothing else`` is the truth: magnitude pruning to that sparsity keeps the accuracy to its right.
# The formulas beneath are predictions; the last column says how far the paper's is from what was measured.
#
# In the figure the upper panel shows the accuracy of the pruned networks, with two standard errors, and the rungs. In
# the lower one the blue curve is the norm R of the weights that magnitude pruning removes, and the orange one the
# largest R that the curvature allows. They cross once, and that is the limit of the formula.

figure = limit.plot()

# %%
# What may be removed, then? Below the measured limit a sparsity is achievable. Above an established bound it would be
# infeasible; here the bound's numerical error leaves nothing, so that no bound is established and 99 % stay open.

for sparsity in (0.5, 0.8, 0.99):
    verdict = limit.check(sparsity)
    print(f"{verdict.status}: {verdict.reason}")
