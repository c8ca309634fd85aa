"""Draw the figure of the page on re-tuning: ``PRUNING_LIMITS_DATA=DATA python docs/retune_figure.py RUNS``.

LeNet-300-100 is trained on MNIST for four epochs, or read from the folder RUNS.
"""

import sys
from pathlib import Path

from pruning_limits import predict_limit
from pruning_limits.ladder import percent
from pruning_limits.plotting import new_figure, plot_rungs, save
from validation.data import load_data
from validation.training import Network, Recipe, trained_network

data = load_data("mnist")
model = trained_network(Network("lenet-300-100", "mnist", Recipe(4, 0.05, warmup=1), 0), data, Path(sys.argv[1]))
limit = predict_limit(
    model,
    data.batches("train", 1000),
    metric="accuracy",
    max_drop=0.005,
    held_out=data.batches("test", 1000),
    retune=True,
)
figure, axes = new_figure(1, size=(8.0, 5.6))
plot_rungs(limit, axes)
axes.set_title(
    "LeNet-300-100 on MNIST: with half a point of accuracy to lose pruning alone removes\n"
    f"{percent(limit.lower)} of the weights, re-tuning with 2,048 samples a stage "
    f"{percent(limit.answer('re-tuned').sparsity)}",
    loc="left",
    fontsize=10,
)
save(figure, Path(__file__).parent / "howto" / "retune.png")
print(limit.summary())
