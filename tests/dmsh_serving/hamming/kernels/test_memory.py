"""Records that Python fills by name and compiled code reads by attribute."""

import numpy as np
import pytest

from dmsh_serving.hamming.bare_pass import JOB as BARE_JOB
from dmsh_serving.hamming.kernels.clustered import CLUSTER_JOB
from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import atomic_add, record_at
from dmsh_serving.hamming.kernels.memory import COUNTER, LINE, aligned_words, new_record
from dmsh_serving.hamming.kernels.radius import RADIUS_JOB
from dmsh_serving.hamming.kernels.scan import SCAN_JOB

PAIR = np.dtype([("taken", COUNTER), ("first", np.int64), ("flag", np.bool_), ("second", np.int64)], align=True)


@pytest.mark.parametrize("job", [SCAN_JOB, RADIUS_JOB, CLUSTER_JOB, BARE_JOB])
def test_the_counter_of_a_job_shares_its_cache_line_with_no_other_field(job):
    counters = [name for name in job.names if job[name] == COUNTER]
    assert len(counters) == 1
    lines = {name: job.fields[name][1] // LINE for name in job.names}
    assert [name for name in job.names if lines[name] == lines[counters[0]]] == counters
    assert COUNTER.itemsize == LINE == 64


@pytest.mark.parametrize("count", [1, 7, 8, 1000])
def test_memory_begins_on_a_cache_line(count):
    kept = [aligned_words(count) for _ in range(5)]
    assert all(memory.ctypes.data % LINE == 0 and memory.shape == (count,) for memory in kept)


def test_a_record_has_the_fields_that_were_named_and_zeros_elsewhere():
    record = new_record(PAIR, second=-7, flag=True)
    assert record.ctypes.data % LINE == 0
    assert record["taken"]["value"] == 0
    assert (record["first"], record["flag"], record["second"]) == (0, True, -7)


def test_a_field_that_a_record_does_not_have_is_refused():
    with pytest.raises(ValueError, match="third"):
        new_record(PAIR, third=1)


def test_compiled_code_reads_and_writes_a_record_in_place_by_name():
    at = record_at(PAIR)

    @compiled("int64(int64)")
    def move(address):
        record = at(address)
        record.first = record.second + record.flag
        return atomic_add(record.taken, 5)

    record = new_record(PAIR, second=41, flag=True)
    record["taken"]["value"] = 3
    assert move(record.ctypes.data) == 3
    assert (record["first"], record["taken"]["value"]) == (42, 8)
