"""TT layers and a model of them in other runtimes: equal answers, and what has none is listed with its reason."""

import pytest

pytest.importorskip("onnxruntime")

from studies.deployment.exports import CANNOT, CASES, WAYS, exported_apart  # noqa: E402

ROUNDING = 2e-5  # in float32, relative to the largest entry


@pytest.mark.parametrize("name", CASES)
def test_a_graph_for_one_size_gives_equal_answers(name):
    assert exported_apart(name, "torch.export", opened=False) <= ROUNDING


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_graph_for_any_size_gives_equal_answers(name, way):
    """It is made from one size and answers another one."""
    assert exported_apart(name, way, opened=True) <= ROUNDING


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_exported_still_cannot(name):
    limit = CANNOT[name]
    with pytest.raises(limit.error):
        limit.attempt()
