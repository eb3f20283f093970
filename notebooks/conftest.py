"""Under nbval no progress bar is drawn: its timings on stderr would never be the same twice."""

import os

from book.tools.execute import QUIET

os.environ.update(QUIET)  # the kernels inherit it
