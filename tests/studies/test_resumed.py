"""A study that is stopped keeps its rows, and measures the others only."""

import pytest

from studies.resumed import add_rows


def test_a_stopped_study_goes_on_where_it_was():
    asked, kept = [], []

    def measure(before, stop=None):
        for key in "abc":
            if key not in before:
                if key == stop:
                    raise KeyboardInterrupt
                asked.append(key)
                yield {"key": key}

    values = {"seconds": {"other": 7}}
    with pytest.raises(KeyboardInterrupt):
        add_rows(values, "rows", "part", lambda before: measure(before, "c"), lambda now: kept.append(len(now["rows"])))
    add_rows(values, "rows", "part", measure, lambda now: kept.append(len(now["rows"])))
    assert asked == ["a", "b", "c"] and kept == [1, 2, 3]
    assert [row["key"] for row in values["rows"]] == asked
    assert values["seconds"]["other"] == 7 and values["seconds"]["part"] >= 0
