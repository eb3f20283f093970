"""What the tests of compressed tables share."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.safetensors"
