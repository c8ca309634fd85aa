"""
The spectrum behind it
======================

Most directions of a trained network are flat, a few are steep. Both curvature matrices show it.
"""

# %%
# ``Hessian`` and ``GGN`` multiply vectors; no matrix is formed. Lanczos turns 64 products per random vector into a
# spectral measure: eigenvalues with weights.

from pathlib import Path

from estimators import GGN, L1, Hessian, Objective, eigenpairs, spectral_measure, xtrace
from pruning_limits.plotting import spectrum_figure
from validation.data import load_data
from validation.training import Network, Recipe, trained_network

data = load_data("digits")
network = Network("fc5-mini", "digits", Recipe(epochs=60, lr=0.05, l1=1e-3, warmup=1), seed=0)
model = trained_network(network, data, Path("runs"))
objective = Objective(model, data.batches("train"), penalty=L1(1e-3))
hessian = Hessian(objective)
measure = spectral_measure(hessian, probes=2, steps=64)
figure = spectrum_figure(measure, f"Hessian, {measure.dimension:,} weights")

# %%
# The Hessian has negative eigenvalues even though the network is trained. The generalised Gauss-Newton matrix has none:
# it leaves out the curvature of the network's outputs.

ggn = spectral_measure(GGN(objective), probes=2, steps=64)
figure_ggn = spectrum_figure(ggn, f"GGN, {ggn.dimension:,} weights")

# %%
# How many directions are there at all? Shares of the eigenvalues up to a value, with standard errors:

for name, spectrum in (("Hessian", measure), ("GGN", ggn)):
    values = [-1e-2, -1e-3, 1e-3, 1e-2, 1e-1]
    shares, errors = spectrum.cumulative(values)
    for value, share, error in zip(values, shares, errors, strict=True):
        print(f"{name:8}up to {value:6g}: {share:7.2%} +- {error:.2%}")

# %%
# The trace and the largest eigenvalues, by estimators made for them:

trace = xtrace(hessian, products=32)
print(f"trace {trace.value:.1f} +- {trace.standard_error:.1f}")
pairs = eigenpairs(hessian, count=3)
print("top eigenvalues", [round(float(value), 2) for value in pairs.values])
