"""Kept fractions of sub-samples carried to all data: planted laws, measured networks and limiting cases."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_limits.extrapolation import growth

FC5 = {128: 0.08, 1024: 0.26, 8192: 0.70, 50_000: 1.10}
FC5_MINI = {44: 1.48, 88: 2.48, 175: 3.94, 350: 5.73, 700: 7.6, 1400: 8.38}
SMALL_CNN = {44: 4.2, 88: 5.47, 175: 8.97, 350: 12.06, 700: 14.66, 1400: 15.39}
fractions = st.floats(1e-6, 1 - 1e-6)


def carried(percent, first, samples, rank=True):
    """Return the extrapolated kept fraction over that of all data, and the error over the miss."""
    total = max(percent)
    kept, before, truth = (percent[n] / 100 for n in (samples, first, total))
    factor, error = growth(kept, before, math.log2(samples / first), math.log2(total / samples), rank)
    return kept * factor / truth, error / max(1e-9, abs(kept * factor - truth))


FAR = [(FC5, 128, 1024), (FC5, 1024, 8192), (FC5_MINI, 44, 350), (SMALL_CNN, 44, 350)]  # a fifth or more is missing


@pytest.mark.parametrize(("percent", "first", "samples"), [*FAR, (FC5_MINI, 88, 700)])
def test_measured_networks_within_a_fifth_and_the_stated_error(percent, first, samples):
    ratio, covered = carried(percent, first, samples)
    assert 0.8 < ratio < 1.2
    assert covered > 1


@pytest.mark.parametrize(("percent", "first", "samples"), FAR)
def test_measured_networks_that_lack_a_fifth_come_nearer(percent, first, samples):
    missing = 1 - percent[samples] / percent[max(percent)]
    ratio, _ = carried(percent, first, samples)
    assert missing > 0.2
    assert abs(ratio - 1) < 0.6 * missing


@pytest.mark.parametrize("slope", [-0.004, -0.02])
def test_a_hessian_that_falls_linearly_in_the_logarithm_is_exact(slope):
    law = {n: 0.3 + slope * math.log2(n) for n in (64, 512, 2048)}
    factor, error = growth(law[512], law[64], 3, 2, rank=False)
    assert law[512] * factor == pytest.approx(law[2048])
    assert error == pytest.approx(law[512] - law[2048])


def test_a_hessian_of_noise_alone_is_exact_far_away():
    law = {n: 0.05 / (1 + n**0.5 / 2000) for n in (64, 128, 1 << 18)}
    factor, error = growth(law[128], law[64], 1, 11, rank=False)
    assert law[128] * factor == pytest.approx(law[1 << 18])
    assert error >= law[128] - law[1 << 18]


@pytest.mark.parametrize(("before", "kept"), [(4.465, 4.253), (4.587, 4.156), (4.482, 4.248), (4.521, 4.205)])
def test_the_hessian_of_fc5_comes_twice_as_near_to_all_data_and_within_the_error(before, kept):
    truth = 3.39  # 48 steps on all data; 64 samples with 32 steps, 1,024 with 16
    factor, error = growth(kept / 100, before / 100, 4, math.log2(50_000 / 1024), rank=False)
    assert abs(kept * factor - truth) < min(100 * error, 0.5 * (kept - truth))


def test_a_near_end_is_linear_and_a_far_one_a_power_law():
    near, _ = growth(0.04, 0.02, 3, 2, rank=True)
    assert 0.04 * near == pytest.approx(0.04 + 0.02 * 2 / 3)
    far, _ = growth(1e-6, 5e-7, 3, 12, rank=True)
    assert far == pytest.approx(2**4, rel=1e-4)


@given(fractions, fractions, st.floats(0.1, 10), st.floats(0.01, 20), st.booleans())
def test_growth_keeps_its_side_and_stays_a_fraction(kept, before, doublings, left, rank):
    factor, error = growth(kept, before, doublings, left, rank)
    assert factor >= 1 if rank else 0.5 <= factor <= 1
    assert error >= abs(kept * factor - kept) * (1 - 1e-9) - 1e-15
    assert math.isfinite(factor)


def test_no_change_corrects_nothing():
    assert growth(0.1, 0.1, 3, 5, rank=True) == growth(0.1, 0.1, 3, 5, rank=False) == (1.0, 0.0)


@pytest.mark.parametrize("rank", [True, False])
def test_what_is_not_corrected_still_counts(rank):
    wrong = (0.1, 0.12) if rank else (0.12, 0.1)
    factor, error = growth(*wrong, 1, 0.5, rank)
    assert factor == 1
    assert error == pytest.approx(0.02)
