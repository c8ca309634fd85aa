"""The command ``pruning-limits`` with all its commands; each command is imported at its first use."""

from __future__ import annotations

from pruning_limits.cli import main

__all__ = ["main"]

SUMMARIES = {
    "check": "Judge a sparsity, or a pruned network by its dense parent.",
    "demo": "Train a small network on embedded digits and answer how far it can be pruned, in under a minute.",
    "predict": "Predict the pruning limit of a trained network.",
    "retune": "Prune a trained network to a sparsity or a pattern in stages, re-tune it on few samples, and write its "
    "weights.",
    "spectrum": "Estimate the spectrum of the curvature: density plot, top eigenvalues, trace.",
    "validate": "Train, prune and measure: tables of predicted against actual limits.",
}

for name, summary in SUMMARIES.items():
    main.add_later(name, f"validation.commands.{name}", summary)

if __name__ == "__main__":
    main()
