"""What every test shares."""

import os

import matplotlib
import torch
from hypothesis import settings

matplotlib.use("Agg")  # no window opens; kernels that nbval starts choose for themselves

# The tests decompose thousands of tiny matrices, where a second thread costs far more than it brings. Tests of the
# thread pool set their own number.
torch.set_num_threads(1)

# The first example pays for starting threads and linear algebra, so a deadline would measure the machine. In CI the
# examples are the same in every run; at home each run looks somewhere new.
settings.register_profile("ttref", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ttref")
