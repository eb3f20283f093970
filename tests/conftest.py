"""What every test shares: one thread, examples that do not change, and the switch that shakes what processors shake."""

import os
import shutil
import signal

if os.environ.get("TTREF_SHAKE") == "1":  # torch reads this when it is imported
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")

import matplotlib
import pytest
import torch
from hypothesis import settings
from shake import SHAKING

matplotlib.use("Agg")  # no window opens; kernels that nbval starts choose for themselves

# The tests decompose thousands of tiny matrices, where a second thread costs far more than it brings. Tests of the
# thread pool set their own number.
torch.set_num_threads(2 if SHAKING else 1)

# The first example pays for starting threads and linear algebra, so a deadline would measure the machine. The examples
# are the same in every run, on every machine: a first test run must not depend on luck. `make slow` looks elsewhere.
settings.register_profile("ttref", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=300, derandomize=False)
settings.load_profile("ttref")

# What a killed process leaves can only be tried where processes can be killed outright; Windows has no such signal.
KILLING = [f"scale/test_{name}.py" for name in ("engine_faults", "engine_ray", "grams", "rows_faults")]
collect_ignore = [] if hasattr(signal, "SIGKILL") else KILLING

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium, for as long as a file of tests; without it they are skipped, but never by .ci/run."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        end = pytest.fail if os.environ.get("TTREF_BROWSER") == "required" else pytest.skip
        end("no chromium on this machine; install it with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        yield browser
        browser.close()
