"""What every test shares."""

import os

import matplotlib
from hypothesis import settings

matplotlib.use("Agg")  # no window opens; kernels that nbval starts choose for themselves

# The first example pays for starting threads and linear algebra, so a deadline would measure the machine. In CI the
# examples are the same in every run; at home each run looks somewhere new.
settings.register_profile("ttref", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ttref")
