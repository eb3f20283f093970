"""What the book takes from the checkout it is built in.

The API page imports `ttref` from here, installed or not. The launch and repository buttons follow the one setting
`repository.url` in `_config.yml`: without an address there is nothing they could point to. Theme options that Jupyter
Book has no key for are set here too, because naming them in `_config.yml` would replace all the others.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def _options(app, config) -> None:
    options = config.html_theme_options
    options["navbar_persistent"] = []  # the search field stands in the side bar already
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    options["extra_footer"] = f"Version {version}. Code: Apache License 2.0. Text and figures: CC BY 4.0."
    if options.get("repository_url"):
        options.update(use_repository_button=True, use_issues_button=True, use_edit_page_button=True)
    else:
        options.pop("launch_buttons", None)


def setup(app) -> dict[str, bool]:
    """Settle the buttons before the theme reads its options."""
    app.connect("config-inited", _options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
