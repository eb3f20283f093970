"""Names of a file and of a model: one prefix for all of them, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttref.audit.naming import matched

PART = st.sampled_from(["a", "b", "0", "1"])
NAME = st.lists(PART, min_size=1, max_size=3).map(".".join)
NAMES = st.lists(NAME, min_size=1, max_size=6, unique=True)


def by_hand(names, own):
    """Every prefix of every name tried, and the names that each finds."""
    ways = {}
    for name in names:
        for one in own:
            if one == name or one.endswith(f".{name}"):
                ways.setdefault(("", one[: len(one) - len(name)]), {})[name] = one
            if name.endswith(f".{one}"):
                ways.setdefault((name[: len(name) - len(one)], ""), {})[name] = one
    return ways


@given(NAMES, NAMES)
def test_the_prefix_that_finds_most_is_taken_and_exact_names_among_equals(names, own):
    ways = by_hand(names, own)
    most = max(map(len, ways.values()), default=0)
    best = [found for found in ways.values() if len(found) == most]
    exact = ways.get(("", ""), {})
    if len(exact) == most or len(best) == 1:
        assert matched(names, own) == (exact if len(exact) == most else best[0])
    else:
        with pytest.raises(ValueError, match="fit several layers of the model .* is .*, or .* is "):
            matched(names, own)


@given(NAMES, PART)
def test_a_prefix_added_to_all_or_taken_from_all_is_undone(names, before):
    inside = [f"whole.{before}.{name}" for name in names]
    assert matched(names, inside) == dict(zip(names, inside, strict=True))
    assert matched(inside, names) == dict(zip(inside, names, strict=True))


def test_the_end_of_a_name_is_not_enough():
    assert matched(["0"], ["0", "1.0"]) == {"0": "0"}
    assert matched(["fc1", "fc2"], ["a.fc1", "a.fc2", "b.fc2"]) == {"fc1": "a.fc1", "fc2": "a.fc2"}
    assert matched(["fc"], ["xfc", "a.fcx", ""]) == {}
    with pytest.raises(ValueError, match=r"\(fc1 is a.fc1, or fc1 is b.fc1\)"):
        matched(["fc1"], ["a.fc1", "b.fc1"])
