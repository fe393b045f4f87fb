from dmsh_serving.codes import uniform_codes
from dmsh_serving.hamming import layout


def test_codes_that_are_too_many_to_sort_in_memory_stay_plain_and_uncounted(monkeypatch):
    codes = uniform_codes(30_000, 16, seed=1)
    assert layout.choose_layout(codes).distinct == len({row.tobytes() for row in codes})
    monkeypatch.setattr(layout, "MAX_COUNTED", 29_999)
    choice = layout.choose_layout(codes)
    assert (choice.layout, choice.distinct) == ("plain", None)
    assert "30,000 codes are too many to sort" in choice.reason
