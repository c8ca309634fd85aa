"""Kept fractions of sub-samples carried to all data: planted laws, measured networks and limiting cases."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_limits.extrapolation import LEAST_ERROR, LINE_ERROR, saturation, settling

fractions = st.floats(1e-6, 1 - 1e-6)
shares = st.lists(st.floats(1e-4, 0.999), min_size=2, max_size=2, unique=True).map(sorted)


def odds(fraction):
    return fraction / (1 - fraction)


def fraction(some_odds):
    return some_odds / (1 + some_odds)


# ----------------------------------------------------------------------------------------------------------- GGN

# Kept fractions and coverages of draws of LeNet-300-100 on 60,000 images of MNIST, 24 steps.
LENET = {128: 0.00466, 256: 0.00684, 512: 0.01037, 1024: 0.01607, 2048: 0.02466, 4096: 0.03572, 8192: 0.04808}
LENET_COVERED = {512: 0.061, 1024: 0.121, 2048: 0.22, 4096: 0.347, 8192: 0.498}
LENET_WHOLE = 0.0619
# Other networks, all samples drawn alike, so that the coverage is their share.
FC5 = {128: 0.0008, 1024: 0.0026, 8192: 0.0070, 50_000: 0.0110}
FC5_MINI = {44: 0.0148, 88: 0.0248, 175: 0.0394, 350: 0.0573, 700: 0.076, 1400: 0.0838}
SMALL_CNN = {44: 0.042, 88: 0.0547, 175: 0.0897, 350: 0.1206, 700: 0.1466, 1400: 0.1539}


@pytest.mark.parametrize("samples", [2048, 4096, 8192])
def test_lenet_is_carried_within_the_stated_error_and_nearer_than_before(samples):
    sizes = (samples // 4, samples)
    factor, error = saturation(tuple(LENET[n] for n in sizes), tuple(LENET_COVERED[n] for n in sizes))
    carried = LENET[samples] * factor
    assert 1 / 1.4 < carried / LENET_WHOLE < 1.4
    assert abs(carried - LENET_WHOLE) < error < LENET_WHOLE


@pytest.mark.parametrize(
    ("law", "sizes"),
    [
        (FC5, (1024, 8192)),
        (FC5_MINI, (44, 175)),
        (FC5_MINI, (88, 350)),
        (FC5_MINI, (175, 700)),
        (SMALL_CNN, (44, 175)),
        (SMALL_CNN, (88, 350)),
        (SMALL_CNN, (175, 700)),
    ],
)
def test_other_measured_networks_lie_within_the_stated_error(law, sizes):
    total = max(law)
    factor, error = saturation(tuple(law[n] for n in sizes), tuple(n / total for n in sizes), known=False)
    assert abs(law[sizes[-1]] * factor - law[total]) < error


@pytest.mark.parametrize("slope", [0.4, 1.0])
@pytest.mark.parametrize("coverage", [(0.1, 0.4), (0.04, 0.16), (0.5, 0.9)])
def test_a_power_law_of_the_odds_is_exact(slope, coverage):
    whole = 0.3
    kept = tuple(fraction(odds(whole) * covered**slope) for covered in coverage)
    factor, error = saturation(kept, coverage)
    assert kept[1] * factor == pytest.approx(whole, rel=1e-12)
    line = slope * -math.log(coverage[1])
    doubt = min(line, max(LEAST_ERROR, LINE_ERROR * line))
    ends = [fraction(odds(whole) * math.exp(sign * doubt)) for sign in (-1, 1)]
    assert error == pytest.approx(max(whole - ends[0], ends[1] - whole), rel=1e-9)


@given(st.tuples(fractions, fractions), shares)
def test_the_ggn_keeps_its_side_and_never_leaves_the_unit_interval(kept, coverage):
    factor, error = saturation(kept, tuple(coverage))
    assert factor >= 1
    assert 0 < kept[1] * factor <= 1 + 1e-12
    assert 0 <= error <= 1


def test_kept_fractions_that_fall_count_as_level():
    factor, error = saturation((0.2, 0.1), (0.2, 0.4))
    assert (factor, error) == (pytest.approx(1.0), 0.0)


# ------------------------------------------------------------------------------------------------------- Hessian


@pytest.mark.parametrize("ratio", [2, 4, 16])
@pytest.mark.parametrize("total", [4096, 1 << 20])
def test_a_hessian_that_falls_with_the_root_of_the_samples_is_exact(ratio, total):
    def law(n):
        return 0.2 + 1.5 / math.sqrt(n)

    samples = (1024 // ratio, 1024)
    factor, error = settling((law(samples[0]), law(samples[1])), samples, total)
    assert law(samples[1]) * factor == pytest.approx(law(total), rel=1e-12)
    assert error == pytest.approx(law(samples[1]) - 0.2, rel=1e-9)


# Kept percentages of FC5, 64 samples with 32 steps and 1,024 with 16; all 50,000 with 48 keep 3.39.
@pytest.mark.parametrize(("before", "kept"), [(4.465, 4.253), (4.587, 4.156), (4.482, 4.248), (4.521, 4.205)])
def test_the_hessian_of_fc5_comes_nearer_to_all_data(before, kept):
    factor, error = settling((before / 100, kept / 100), (64, 1024), 50_000)
    assert factor < 1
    assert 3.39 < kept * factor < kept
    assert (kept - kept * factor) / 100 <= error


def test_a_hessian_that_rises_is_left_alone_and_the_rise_is_error():
    factor, error = settling((0.1, 0.12), (2500, 10_000), 1_000_000)
    assert factor == 1
    assert error == pytest.approx(0.02)


def test_two_sub_samples_that_agree_have_the_error_of_a_draw():
    factor, error = settling((0.1, 0.1), (25, 100), 400)
    assert factor == 1
    assert error == pytest.approx(2.5 * 0.1 * math.sqrt(0.01 - 0.0025))


def test_the_error_of_a_draw_of_nearly_all_data_vanishes():
    assert settling((0.1, 0.1), (2500, 9999), 10_000)[1] == pytest.approx(0.0, abs=3e-5)


sizes = st.lists(st.integers(1, 1 << 24), min_size=3, max_size=3, unique=True).map(sorted)


@given(fractions, fractions, sizes)
def test_the_hessian_keeps_its_side_and_stays_a_fraction(kept, before, sizes):
    factor, error = settling((before, kept), (sizes[0], sizes[1]), sizes[2])
    assert 0.5 <= factor <= 1
    assert error >= abs(kept * factor - kept) * (1 - 1e-9) - 1e-15
    assert error >= kept * math.sqrt(1 / sizes[1] - 1 / sizes[2])
    assert math.isfinite(error)
