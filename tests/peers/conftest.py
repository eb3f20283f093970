"""What the comparisons with TensorLy and its layers share."""

import pytest
import tensorly


@pytest.fixture(scope="module")
def torch_backend():
    """TensorLy's backend is one for the whole process: torch while a module asks for it, then what it was."""
    before = tensorly.get_backend()
    tensorly.set_backend("pytorch")
    yield
    tensorly.set_backend(before)
