"""Write the repository's public address into all files that hold it: `make address REPO=owner/name` (`REPO=` for none).

`repository.url` in `_config.yml` is the source. From there it is copied into the badge row and bootstrap cell of every
notebook, with the tag of this version: a notebook fetches its own release, not the current state of the branch.
"""

import re
import sys

from book.tools import notebooks


def set_address(repo: str) -> str:
    """Write `repo` ("owner/name", or "" for none) into `_config.yml`.

    Returns:
        The address as written.

    Raises:
        ValueError: `repo` is not of the form owner/name, or `_config.yml` has no lines for url and branch.
    """
    if repo and not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", repo):
        raise ValueError(f"{repo!r} is not of the form owner/name")
    url = f"https://github.com/{repo}" if repo else ""
    config = notebooks.CONFIG.read_text(encoding="utf-8")
    lines = rf'\g<1>"{url}"\g<2>{notebooks.revision() if url else "main"}'
    text, found = re.subn(r"^(repository:\n  url: ).*(\n  branch: ).*$", lines, config, flags=re.MULTILINE)
    if found != 1:
        raise ValueError("_config.yml needs the lines '  url: ...' and '  branch: ...' directly below 'repository:'")
    notebooks.CONFIG.write_text(text, encoding="utf-8")
    return url


def main(repo: str) -> None:
    """Set the address and update every notebook."""
    url = set_address(repo)
    print(f"repository.url: {url or 'none'}")
    for path in notebooks.chapters():
        nb = notebooks.read(path)
        notebooks.dress(nb, path.name, url)
        print(f"{path.name}: {'rewritten' if notebooks.write(path, nb) else 'as it was'}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(f"address: {error}")
