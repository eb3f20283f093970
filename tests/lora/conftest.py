"""What the tests of adapters share."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"
