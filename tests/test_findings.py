"""Titles of figures: what they say of rows made by hand."""

from validation.studies.koopman import cost, epochs, limit
from validation.studies.koopman import spectrum as eigenvalues
from validation.studies.limits import bounds, early, forecast_fresh, kinematics, oracle, row_norms, splits, weights
from validation.studies.lottery import accuracy as lottery_accuracy
from validation.studies.lottery import compute as lottery_compute
from validation.studies.lottery import neurons, sizes, tickets
from validation.studies.lottery import spectrum as lottery_spectrum

FIRST = {"model": "m", "dataset": "d", "penalty": "none"}
SECOND = FIRST | {"model": "n"}


# ------------------------------------------------------------------------------------------------- koopman


def test_cost_is_in_units_of_the_paper_and_of_the_method_of_snapshots() -> None:
    fast = {"method": "method of snapshots", "parameters": 1000, "seconds": 2.0, "peak": 0.5}
    small = fast | {"parameters": 100, "seconds": 1.0, "paper_seconds": None, "paper_memory": None}
    full = small | {"method": "full SVD", "seconds": 7.0, "peak": 1.5}
    paper = [fast | {"paper_seconds": 20.0, "paper_memory": 1.0}, fast | {"paper_seconds": 40.0, "paper_memory": 1.0}]
    said = "ith 100 parameters, a full SVD takes 7.0 times as long and 3.0 times the memory"
    first = "The method of snapshots needs 5% to 10% of the paper's time and 50% of its memory"
    assert cost.finding([*paper, small, full]) == f"{first}; w{said}"
    assert cost.finding([small, full]) == f"W{said}"
    assert cost.finding(paper) == first


def test_epochs_compare_the_first_mask_with_the_last() -> None:
    pairs = {("1", "5"): 0.9, ("1", "converged"): 0.5, ("5", "converged"): 0.8}
    table = [
        kind | {"first": first, "second": second, "compression": 4, "floor": floor, "overlap": overlap}
        for kind, floor in ((FIRST, 0.25), (SECOND, 0.1))
        for (first, second), overlap in pairs.items()
    ]
    said = "First and last recorded KMP masks overlap 2.0 to 5.0 times as much as random ones"
    assert epochs.finding(table, []) == said
    barriers = [FIRST | {"barrier": 0.5}, FIRST | {"barrier": 3.24}]
    assert epochs.finding(table, barriers) == f"{said}; the highest barrier is 3.2 points of test error"


def test_limits_of_the_fixed_point_are_held_against_those_of_raw_weights() -> None:
    near = {"fixed_size": 1.0, "raw_size": 2.0, "fixed_size_same": 4.0, "raw_size_same": 4.0}
    far = near | {"fixed_size": 9.0, "fixed_size_same": 3.0}
    said = limit.finding([near, far])
    assert "is 1.0 to 9.0 points off that of the end" in said
    assert "farther off at 1 of 2 epochs, with the final epsilon at 1" in said


def test_spectra_name_the_worst_eigenvalue_and_overlaps_above_compression_one() -> None:
    spectra = [{"real": [0.5, 0.99], "imaginary": [0.0, 0.0]}, {"real": [1.0, 0.0], "imaginary": [0.0, -1.25]}]
    masks = [{"compression": c, "floor": 1 / c, "overlap": overlap} for c, overlap in ((1, 1.0), (2, 0.6), (4, None))]
    said = "The eigenvalue nearest 1 is off by at most 0.01, the largest modulus is 1.25"
    rows = [{"spectra": spectra}]
    assert eigenvalues.finding(rows, masks) == f"{said}; masks of KGP and JGP overlap 1.2 times as much as random ones"
    assert eigenvalues.finding(rows, masks[::2]) == said


# -------------------------------------------------------------------------------------------------- limits


def test_early_limits_are_those_of_the_first_checkpoint() -> None:
    table = [
        kind | {"epoch": epoch, "difference": difference, "difference_final": -9.0}
        for kind, off in ((FIRST, -3.0), (SECOND, 1.0))
        for epoch, difference in ((1, off), (5, 50.0))
    ]
    said = "At epoch 1 the mean predicted one-shot limit is 1.0 to 3.0 points from that of the end"
    assert early.finding(table) == f"{said}, with the final epsilon 9.0"


def test_bounds_that_are_not_known_are_counted() -> None:
    ends = {"lower": 0.5, "beyond": 0.62}
    rows = [ends | {"gap": 12.0}, ends | {"gap": 40.96, "beyond": 0.9096}, ends | {"gap": None, "beyond": None}]
    said = "Lower and upper bound lie 12.0 to 41.0 points apart"
    wide = bounds.finding([row | {"beyond": 0.99} for row in rows[:2]])
    assert wide == f"{said}, with the numerical error of the upper one 49.0"
    assert bounds.finding(rows[:2]) == said
    assert bounds.finding(rows) == f"{said}; no upper bound is known for 1 of 3 networks"
    assert bounds.finding(rows[2:]) == "No upper bound is known for 1 of 1 networks"


def test_fresh_networks_are_counted_within_the_forecast() -> None:
    lines = [{"within": "yes", "factor": 0.5}, {"within": "no", "factor": 2.0}]
    said = "Fresh networks: 1 of 2 ends lie within the forecast's interval; what is kept is 0.50 to 2.00 times"
    assert forecast_fresh.finding(lines) == f"{said} the forecast"
    assert "0 of 0" in forecast_fresh.finding([])


def test_subspaces_are_counted_for_either_prediction() -> None:
    rows = [{"directional_excess": off, "isotropic_excess": 30 * off} for off in (0.5, -1.9, 2.1, 0.0)]
    said = "Half of the random subspaces meet the set within 2% of D of the directional k* in 3 of 4 rows"
    assert kinematics.finding(rows) == f"{said}, of the isotropic k* in 1"


def test_re_trained_optima_name_the_prediction_that_is_nearest() -> None:
    limits = {"isotropic_hessian": 0.6, "isotropic_ggn": 0.7, "directional": 0.88}
    rows = [limits | {"retrained": retrained, "parameters": 1000} for retrained in (0.9, 0.8)]
    said = 'Optima after re-training lie nearest to the prediction "directional, GGN": what it keeps is off by a factor'
    assert oracle.finding(rows) == f"{said} of 1.20 to 1.67"


def test_row_norms_name_the_share_of_small_rows() -> None:
    rows = [{"small": 0.25, "high": 3.0, "low": 2.0}, {"small": 0.63, "high": 9.0, "low": 1.0}]
    said = "Rows of the largest tenth of the weights have 1.5 to 9.0 times the norm of those of the smallest tenth"
    assert row_norms.finding(rows) == f"{said}; 25% to 63% of all rows are below 1% of the largest"
    assert "have - times" in row_norms.finding([rows[0] | {"low": 0.0}])


def test_splits_that_tie_share_the_least_rise() -> None:
    rises = {"curves": 2.0, "blocks": 1.0, "magnitude": 1.0, "uniform": 3.0}
    gone = {f"{key}_again": float("inf") for key in rises}
    after = gone | {"uniform_again": -1.0}
    said = splits.finding([rises | after, rises | {"blocks": 1.5} | gone])
    assert 'most often "global magnitude" after pruning (2 of 2 cases)' in said
    assert '"same share of every layer" after the whole recipe (1 of 2 cases)' in said
    tied = 'most often "best by the GGN\'s blocks" and "global magnitude" after pruning (1 of 1 cases)'
    assert tied in splits.finding([rises | after])


def test_histograms_of_one_network_are_compared_with_none() -> None:
    alone = {"largest": None, "distance": None, "noise": 0.1}
    rows = [alone, alone | {"largest": 0.3, "distance": 0.2}]
    assert weights.finding([alone]) == "One network of each kind: there is nothing to compare"
    assert "differ by at most 0.300 (total variation), on average 2.0 times" in weights.finding(rows)


# ------------------------------------------------------------------------------------------------- lottery


def test_accuracies_are_those_at_the_usual_ratio() -> None:
    table = [
        kind | {"pruner": name, "sparsity": ratio, "gain": gain + shift}
        for kind, shift in ((FIRST, 0.0), (SECOND, -1.0))
        for name, gain in ((lottery_accuracy.MAGNITUDE, 0.5), (lottery_accuracy.RANDOM, -40.0))
        for ratio in (0.8, 0.9)
        for gain in [gain - 100 * (ratio - 0.8)]
    ]
    said = "At 80% removed, accuracy changes by -0.5 to +0.5 points by magnitude and by -41.0 to -40.0 points at random"
    assert lottery_accuracy.finding(table) == said


def test_compute_names_the_best_by_magnitude_at_high_sparsity() -> None:
    rows = [("gmp", 0.9, -2.0, 10.0), ("imp", 0.9, -1.0, 8.0), ("imp", 0.5, 1.0, 2.0), ("random", 0.9, 5.0, 20.0)]
    table = [
        FIRST | {"pruner": name, "sparsity": sparsity, "gain": gain, "factor": factor}
        for name, sparsity, gain, factor in rows
    ]
    said = "At 90% removed, the best network pruned by magnitude is -1.0 points from the dense one and needs 8.0 times"
    assert lottery_compute.finding(table) == f"{said} fewer MACs"


def test_neurons_name_the_fitted_power() -> None:
    rows = [{"samples": n, "moved": n**-0.4, "separated": 0.5} for n in (100, 400, 1600)]
    said = neurons.finding([*rows[:2], rows[2] | {"separated": 0.98}])
    assert said.startswith("At N = 1600 the norm alone tells apart 98.0% of the neurons")
    assert said.endswith("as N to the power -0.40, claimed -0.5")


def test_sizes_count_factors_that_agree() -> None:
    row = {"convolution_weights": 0.04, "convolution_macs": 0.92}
    rows = [row | {"arithmetic": "yes"}, row | {"arithmetic": "no", "convolution_weights": 1.0}]
    said = "The published factor follows from published or counted sizes in 1 of 2 networks"
    assert sizes.finding(rows) == f"{said}; convolutions have 4% to 100% of the weights and 92% of the MACs"


def test_pruned_networks_are_steeper_only_where_every_step_rises() -> None:
    table = [
        kind | {"sparsity": sparsity, "mean": mean, "limit": 0.5 + sparsity / 10}
        for kind, means in ((FIRST, (1.0, 2.0, 3.0)), (SECOND, (1.0, 4.0, 3.0)))
        for sparsity, mean in zip((0.0, 0.5, 0.9), means, strict=True)
    ]
    said = lottery_spectrum.finding(table)
    assert "rises at every step in 1 of 2 kinds of network" in said
    assert "with 90% removed, the predicted one-shot limit of all weights is +9.0 points" in said


def test_tickets_stand_beside_controls_where_most_is_removed() -> None:
    table = [
        FIRST | {"kind": kind, "sparsity": sparsity, "gain": gain - 10 * sparsity}
        for sparsity in (0.5, 0.95)
        for kind, gain in (("winning ticket", 9.0), ("shuffled", -20.0), ("re-initialised", -10.5))
    ]
    said = (
        "With 95% removed, points of accuracy against dense: winning ticket -0.5, shuffled -29.5, re-initialised -20.0"
    )
    assert tickets.finding([FIRST | {"kind": "dense", "sparsity": 0.0, "gain": 0.0}, *table]) == said
