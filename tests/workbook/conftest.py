"""The shipped language model, for all tests of this folder."""

import pytest

from book.workbook import sources


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2, whatever model the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TTREF_LM", raising=False)
        return sources.load_language_model()
