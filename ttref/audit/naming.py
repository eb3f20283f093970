"""Names in a file and names in a model, of which either may have the name of the whole before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

__all__ = ["matched"]


def matched(names: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Each name of a file with its name in the model: the same, or with one prefix added or removed, alike for all.

    One prefix never gives two names the same layer. Of several prefixes that one counts under which most names are
    found; of equals, exact names do.

    Args:
        names: In the file.
        own: In the model.

    Returns:
        Names of the model by those of the file, without those that it does not have.

    Raises:
        ValueError: As many names are found under one prefix as under another.

    Cost:
        In proportion to the number of names and of their parts.

    Example:
        >>> matched(["h.0.fc", "h.1.fc", "wte"], ["transformer.h.0.fc", "transformer.h.1.fc", "head"])
        {'h.0.fc': 'transformer.h.0.fc', 'h.1.fc': 'transformer.h.1.fc'}
        >>> matched(["0"], ["0", "1.0"])
        {'0': '0'}
    """
    before: dict[str, list[str]] = defaultdict(list)  # what stands before an end of a name in the model
    whole = dict.fromkeys(own)
    for one in whole:
        for head, tail in _cuts(one):
            before[tail].append(head)
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # by the prefix removed, and the one added
    for name in names:
        for head in before.get(name, ()):
            found["", head][name] = head + name
        for head, tail in _cuts(name):
            if head and tail in whole:
                found[head, ""][name] = tail
    most = max(map(len, found.values()), default=0)
    best = [one for one in found.values() if len(one) == most]
    exact = found.get(("", ""), {})
    if exact in best or not best:
        return exact
    if len(best) > 1:
        told = ", or ".join("{} is {}".format(*next(iter(one.items()))) for one in best[:2])
        raise ValueError(f"names of the file fit several layers of the model ({told}); give the part that is meant")
    return best[0]


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name in two at its beginning and behind each dot."""
    parts = name.split(".")
    for k in range(len(parts)):
        tail = ".".join(parts[k:])
        yield name[: len(name) - len(tail)], tail
