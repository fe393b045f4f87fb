from dmsh_serving import progress as module
from dmsh_serving.progress import progress


def test_in_a_log_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress() as display:
        monkeypatch.setattr(display, "get_time", lambda: now[0])
        task = display.add_task("encoding", total=4000)
        for second in range(1, 25):
            now[0] = float(second)
            display.update(task, completed=100 * second)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "encoding: 1,000 of 4,000, 100.0/s, 30 s left",
        "encoding: 2,000 of 4,000, 100.0/s, 20 s left",
    ]


def test_short_work_says_nothing_in_a_log(capsys):
    with progress() as display:
        task = display.add_task("reading", total=None)
        display.advance(task, 3)
        display.update(task, total=4)
    assert capsys.readouterr().err == ""


def test_times_are_told_in_the_unit_that_suits_them():
    assert [module._duration(seconds) for seconds in (5.4, 65, 3661)] == ["5 s", "1:05 min", "1:01:01"]
