"""Statistics of tensors: the same however the images are batched, and scales that hold what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_export.quantise import calibration
from dmsh_export.quantise.calibration import TensorStatistics


def statistics_of(*batches):
    statistics = TensorStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.add(batch)
    return statistics


def normal(count, spread=1.0, seed=0):
    return torch.randn(count, 5, 8, 8, generator=torch.Generator().manual_seed(seed)) * spread


def test_mean_and_largest_are_those_of_all_values_together():
    batches = [normal(3), normal(4, 9.0, 1), normal(1, 0.1, 2)]
    statistics = statistics_of(*batches)
    together = torch.cat(batches).double()
    torch.testing.assert_close(statistics.mean, together.mean((0, 2, 3)), rtol=1e-6, atol=1e-9)
    assert torch.equal(statistics.largest, together.abs().amax((0, 2, 3)))


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(0.01, 0.3))
@settings(max_examples=30)
def test_the_error_of_a_scale_is_that_of_really_rounding(seed, spread, share):
    values = normal(64, spread, seed)  # enough that chance moves the real error by far less than the bound below
    scale = float(values.abs().max()) / 127 * (1 - share)
    really = ((values / scale).round().clamp(-127, 127) * scale - values).double().square().mean()
    assert statistics_of(values).error(scale) == pytest.approx(float(really), rel=0.1)


def test_a_range_that_grows_later_keeps_what_was_counted_before():
    small, large = normal(4, 0.01), normal(4, 50.0, 1)
    one, other = statistics_of(small, large), statistics_of(large, small)
    assert one.scale("mse") == other.scale("mse")
    assert one.power() == pytest.approx(float(torch.cat([small, large]).double().square().mean()), rel=0.01)


def test_zeros_have_no_part_in_the_error():
    values = normal(2)
    with_zeros = torch.cat([values, torch.zeros_like(values)])
    assert statistics_of(with_zeros).error(0.01) == pytest.approx(statistics_of(values).error(0.01))


def test_the_max_policy_clips_nothing_and_a_percentile_leaves_out_an_outlier():
    values = normal(64)
    values[0, 0, 0, 0] = 1000
    statistics = statistics_of(values)
    assert statistics.scale("max") == pytest.approx(1000 / 127)
    assert statistics.scale("percentile") < 10 / 127


def test_the_mse_policy_gives_an_error_no_other_policy_beats():
    for spread in (0.1, 1, 30):
        values = normal(8, spread) ** 3
        statistics = statistics_of(values)
        least = statistics.error(statistics.scale("mse"))
        assert least <= min(statistics.error(statistics.scale(policy)) for policy in ("max",))
        assert np.isfinite(least)


def test_the_mse_policy_looks_at_steps_many_times_smaller_than_those_that_clip_nothing():
    statistics = statistics_of(normal(64) ** 3)
    largest = statistics.scale("max")
    least = min(statistics.error(largest / 2**octave) for octave in range(6))
    assert least < statistics.error(largest / 2**0.5)  # else this shows nothing
    assert statistics.error(statistics.scale("mse")) <= least


def test_what_is_more_than_half_a_step_past_the_last_one_is_clipped():
    values, scale = torch.full((4, 3, 8, 8), 7.0), 7.0 / 128
    assert statistics_of(values).error(scale) == pytest.approx(scale**2, rel=0.1)


def test_a_dead_tensor_has_a_scale():
    assert statistics_of(torch.zeros(2, 3, 4, 4)).scale("mse") == 1.0


def test_the_mse_policy_clips_an_outlier_by_half_if_that_costs_less_than_coarse_steps():
    values = normal(640)
    values[0, 0, 0, 0] = 100
    statistics = statistics_of(values)
    scale = statistics.scale("mse")
    assert scale < 0.6 * 100 / 127
    assert statistics.error(scale) <= min(statistics.error(0.8 * scale), statistics.error(1.25 * scale))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_value_is_copied_to_be_sampled_whatever_the_layout(layout):
    values = normal(2).contiguous(memory_format=layout)
    found = calibration._in_memory_order(values)
    assert found.data_ptr() == values.data_ptr()
    assert torch.equal(found.sort().values, values.flatten().sort().values)
