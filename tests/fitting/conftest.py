"""What the tests of fits share."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"
