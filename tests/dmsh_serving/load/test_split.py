from dmsh_serving.load.split import ModelCounts, splits_between

BEFORE = {"a": ModelCounts(10, 20, 5, 1000, 100, 1, 2, 3), "b": ModelCounts(7, 7, 7)}


def test_what_was_done_between_two_accounts_is_told_per_request():
    milliseconds = 1_000_000
    after = {
        "a": ModelCounts(20, 50, 15, 1000 + 80 * milliseconds, 100 + 30 * milliseconds, 1 + 5 * milliseconds,
                         2 + 40 * milliseconds, 3 + 5 * milliseconds),
        "b": BEFORE["b"],
        "new": ModelCounts(1, 1, 0, 5 * milliseconds),
    }  # fmt: skip
    first, new = splits_between(BEFORE, after)
    assert (first.model, first.requests, first.rows_per_call) == ("a", 10, 3)
    assert (first.total_ms, first.queue_ms, first.compute_ms) == (8, 3, 5)
    assert (new.model, new.rows_per_call, new.total_ms) == ("new", 0, 5), "an ensemble executes nothing itself"


def test_models_that_did_nothing_are_left_out():
    assert splits_between(BEFORE, BEFORE) == []
