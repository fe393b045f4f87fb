import numpy as np
import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.load.measure import Measured
from dmsh_serving.load.objectives import Objective
from dmsh_serving.load.plot import checked_plot_path, write_plot
from dmsh_serving.load.send import Closed


def sweep(count=2000):
    levels = ((1, 100, 10), (2, 180, 11), (4, 200, 20))
    return [
        Measured(Closed(clients), 1, True, count / speed, np.full(count, ms / 1000), count)
        for clients, speed, ms in levels
    ]


def test_the_plot_marks_the_knee_and_the_objective(tmp_path):
    path = tmp_path / "load.svg"
    write_plot(path, sweep(), [Objective.parse("p99=15ms")], "dmsh_search")
    text = path.read_text()
    for part in ("knee: 2 clients", "p99 &lt;= 15 ms", "4 clients", "images per second", "latency, ms"):
        assert part in text, part
    first = path.read_bytes()
    write_plot(path, sweep(), [Objective.parse("p99=15ms")], "dmsh_search")
    assert path.read_bytes() == first


def test_a_percentile_that_nothing_tells_is_left_out_of_the_plot(tmp_path):
    write_plot(tmp_path / "load.svg", sweep(20), [], "few")
    assert ">p99<" not in (tmp_path / "load.svg").read_text()


@pytest.mark.parametrize("name", ["load.png", "absent/load.svg", "folder.svg"])
def test_a_place_where_no_plot_can_be_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(InputError, match=r"name a file that ends in \.svg"):
        checked_plot_path(tmp_path / name)
