"""
The first limit
===============

Train a small network, predict how far it can be pruned, and compare with what pruning does.
"""

# %%
# The network has 15,000 weights in five layers and is trained with an L1 penalty. ``trained_network`` keeps the weights
# in a folder, so that they are trained once.

from pathlib import Path

from estimators import L1
from pruning_limits import predict_limit
from validation.data import load_data
from validation.training import Network, Recipe, accuracy, trained_network

data = load_data("digits")
network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), seed=0)
model = trained_network(network, data, Path("runs"))
print(f"test accuracy {accuracy(model, data):.2%}")

# %%
# One call predicts. The penalty must be that of training, because it belongs to the objective. A tolerance of five
# points is coarse; 128 steps with one random vector meet it.

limit = predict_limit(
    model, data.batches("train"), penalty=L1(1e-3), tolerance=0.05, steps=128, probes=1, progress=False
)
print(limit.summary())

# %%
# ``measured one-shot`` is the truth: magnitude pruning to that sparsity keeps the training objective within epsilon.
# ``predicted one-shot limit`` should be near it; on this small network it is too low. The note says that the weights
# are not quite at a minimum.
#
# In the figure the blue curve is the norm R of the weights that magnitude pruning removes. The orange one is the
# largest R that the curvature allows. They cross once, and that is the limit. The lower panel shows the measured rise
# of the objective; it crosses the dotted line, epsilon, at the measured limit.

figure = limit.plot()

# %%
# What may be removed, then? Below the measured limit a sparsity is achievable. Above the upper bound *and its numerical
# error* it would be infeasible; here that error is of several points, so that even 99 % stay open.

for sparsity in (0.8, 0.9, 0.99):
    verdict = limit.check(sparsity)
    print(f"{verdict.status}: {verdict.reason}")
