"""
Koopman pruning
===============

The weights over the steps of one epoch, read as a dynamical system: one mode stays, and its sizes rank the weights.
"""

# %%
# ``trained_further`` trains the network for one more epoch, records the weights after every step, and decomposes them
# into dynamic modes.

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from validation.data import load_data
from validation.masks import overlap, select
from validation.pruners import Problem
from validation.pruners.koopman import magnitude_mode, mode_scores, trained_further
from validation.pruners.magnitude import magnitude_masks
from validation.training import Network, Recipe, trained_network

data = load_data("digits")
recipe = Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1)
model = trained_network(Network("fc5-mini", "digits", recipe, seed=0), data, Path("runs"))
further, modes = trained_further(Problem("fc5-mini", data, recipe, 0, model, 61))
stays = magnitude_mode(modes)
print(f"{len(modes.eigenvalues)} modes; the one that stays has eigenvalue {modes.eigenvalues[stays]:.6f}")
print(f"snapshots are reconstructed within {modes.errors().max():.2%}")

# %%
# Eigenvalues inside the unit circle decay, those on it stay or turn. Koopman magnitude pruning removes the smallest
# entries of the mode whose eigenvalue is nearest 1. At the end of training that is nearly the order of the magnitudes.

compressions = [2, 4, 8, 16, 32]
shared = []
for compression in compressions:
    sparsity = 1 - 1 / compression
    koopman = select(mode_scores(modes, stays, further), sparsity)
    shared.append(100 * overlap(koopman, magnitude_masks(further, sparsity)))

figure, (plane, bars) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
angle = np.linspace(0, 2 * np.pi, 200)
plane.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=1)
plane.scatter(modes.eigenvalues.real, modes.eigenvalues.imag, color="#0072b2")
plane.scatter([modes.eigenvalues[stays].real], [0], s=150, facecolors="none", edgecolors="#d55e00", label="stays")
plane.set(aspect="equal", xlabel="real part", ylabel="imaginary part", title="Eigenvalues")
plane.legend(loc="lower left")
bars.bar([f"{compression}" for compression in compressions], shared, color="#0072b2")
bars.set(xlabel="compression", ylabel="%", title="Kept weights shared with magnitude pruning", ylim=(0, 105))
plt.show()

# %%
# What holds of the claims on Koopman pruning, one by one, is on the :doc:`page about it </koopman>`.
