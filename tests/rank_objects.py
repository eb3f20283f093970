"""What the tests of the rank explorer share: its objects, its forms, and the extension that puts them into the page."""

import importlib.util

from book.tools import rank_records
from book.tools.notebooks import ROOT

OBJECTS = rank_records.objects()
FORMS = [(thing, form) for thing in OBJECTS for form in thing["forms"]]


def extension():
    spec = importlib.util.spec_from_file_location("rank_explorer", ROOT / "book/_ext/rank_explorer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
