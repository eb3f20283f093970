"""Write the hashes of pinned packages: `make hashes`.

A pin without `--hash` lines gets those of every wheel that a reader's machine may install, and of the source
distribution if there is no wheel; pins with hashes stay as they are. To change a version, edit it, delete the hash
lines below it, and run this. torch is also looked up in TORCH_INDEX, PyTorch's index of CPU wheels.
"""

import html
import os
import re
import urllib.request
from urllib.parse import unquote, urljoin

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from book.tools.notebooks import ROOT

PLATFORMS = re.compile(r"any|(many)?linux.*_(x86_64|aarch64)|macosx_.*|win_(amd64|arm64)")
TAGS = {
    (tag.interpreter, tag.abi)
    for minor in (11, 12, 13)
    for tag in [
        *cpython_tags((3, minor), [f"cp3{minor}"], ["any"]),
        *compatible_tags((3, minor), f"cp3{minor}", ["any"]),
    ]
}
LINK = re.compile(r'href="([^"#]+)#sha256=([0-9a-f]{64})"')


def files() -> list:
    """Return every file of pins, in the order of their names."""
    return sorted(ROOT.glob("requirements*.txt"))


def takes(name: str) -> bool:
    """True if the wheel `name` is for a Python and a platform that the book supports."""
    tags = parse_wheel_filename(name)[-1]
    return any((tag.interpreter, tag.abi) in TAGS and PLATFORMS.fullmatch(tag.platform) for tag in tags)


def hashes(page: str, version: str) -> list[str]:
    """Return the hashes that a package's page of links gives for one version, in a fixed order."""
    wheels, sources = {}, {}
    for link, digest in LINK.findall(page):
        name = unquote(html.unescape(link)).rpartition("/")[-1]
        try:
            if name.endswith(".whl"):
                if parse_wheel_filename(name)[1].public == str(Version(version)) and takes(name):
                    wheels[digest] = name
            elif str(parse_sdist_filename(name)[1]) == str(Version(version)):
                sources[digest] = name
        except (InvalidSdistFilename, InvalidWheelFilename):
            continue  # an old file, whose name does not follow today's rules
    return sorted(wheels or sources)


def indexes(name: str) -> list[str]:
    """Return the indexes that have files of `name`: pip's own, and for torch that of TORCH_INDEX."""
    from pip._internal.models.index import PyPI  # pip's default, so that no address is written here

    extra = os.environ.get("TORCH_INDEX", "")
    return [os.environ.get("PIP_INDEX_URL") or PyPI.simple_url, *([extra] if name == "torch" and extra else [])]


def fetch(name: str) -> str:
    """Return the pages of links of a package, joined."""
    pages = []
    for index in indexes(name):
        asked = urllib.request.Request(urljoin(index.rstrip("/") + "/", name + "/"), headers={"Accept": "text/html"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)


def locked(text: str, page=fetch) -> str:
    """Return the text of a requirements file with hashes below every pin that had none.

    Raises:
        ValueError: a pin is not exact, or no file that its index lists fits it.
    """
    lines = []
    for line in text.splitlines():
        if not line or line[0] in "#-" or line[0].isspace() or line.endswith("\\"):
            lines.append(line)
            continue
        requirement = Requirement(line)
        pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
        found = hashes(page(canonicalize_name(requirement.name)), pins[0]) if pins else []
        if not found:
            raise ValueError(f"{line}: no exact pin, or no file of this version fits Python 3.11 to 3.13")
        lines += [f"{line} \\", *(f"    --hash=sha256:{digest} \\" for digest in found[:-1])]
        lines.append(f"    --hash=sha256:{found[-1]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Bring every file of pins up to date; each is written whole or not at all."""
    for path in files():
        text = path.read_text(encoding="utf-8")
        fresh = locked(text)
        if fresh != text:
            part = path.with_suffix(".part")
            part.write_text(fresh, encoding="utf-8")
            os.replace(part, path)
        print(f"{path.name}: {'rewritten' if fresh != text else 'as it was'}")


if __name__ == "__main__":
    main()
