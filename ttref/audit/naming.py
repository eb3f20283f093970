"""Names in a file and names in a model, of which either may have the name of the whole before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

__all__ = ["beginnings", "matched"]


def beginnings(names: Iterable[str], own: Iterable[str], first: Iterable[str] = ()) -> tuple[str, str]:
    """What stands before the names of a file, and what before those of a model, where the rest is the same.

    One of the two is empty, and it holds for all names alike, so that no two get the same place. It is the prefix under
    which most names are found, those of ``first`` before all others; of equals, none.

    Args:
        names: In the file.
        own: In the model.
        first: Those of the model that count before the others.

    Raises:
        ValueError: As many names are found under one prefix as under another.

    Cost:
        In proportion to the number of names and of their parts.

    Example:
        >>> beginnings(["h.0.fc", "h.1.fc", "wte"], ["transformer.h.0.fc", "transformer.h.1.fc", "head"])
        ('', 'transformer.')
    """
    before: dict[str, list[str]] = defaultdict(list)  # what stands before an end of a name in the model
    whole = dict.fromkeys(own)
    for one in whole:
        for head, tail in _cuts(one):
            before[tail].append(head)
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # by the prefixes
    for name in names:
        for head in before.get(name, ()):
            found["", head][name] = head + name
        for head, tail in _cuts(name):
            if head and tail in whole:
                found[head, ""][name] = tail
    first = set(first)
    counted = {ways: (len(first & set(one.values())), len(one)) for ways, one in found.items()}
    most = max(counted.values(), default=None)
    best = [ways for ways, count in counted.items() if count == most]
    if len(best) < 2 or ("", "") in best:
        return best[0] if len(best) == 1 else ("", "")
    told = ", or ".join("{} is {}".format(*next(iter(found[ways].items()))) for ways in best[:2])
    raise ValueError(f"names of the file fit several layers of the model ({told}); give the part that is meant")


def matched(names: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Each name of a file with its name in the model: the same, or with one prefix added or removed, alike for all.

    Args:
        names: In the file.
        own: In the model.

    Returns:
        Names of the model by those of the file, without those that it does not have.

    Raises:
        ValueError: As many names are found under one prefix as under another.

    Cost:
        As :func:`beginnings`.

    Example:
        >>> matched(["h.0.fc", "h.1.fc", "wte"], ["transformer.h.0.fc", "transformer.h.1.fc", "head"])
        {'h.0.fc': 'transformer.h.0.fc', 'h.1.fc': 'transformer.h.1.fc'}
        >>> matched(["0"], ["0", "1.0"])
        {'0': '0'}
    """
    names, own = list(names), dict.fromkeys(own)  # in their order, which an error shows
    there, here = beginnings(names, own)
    renamed = {name: here + name.removeprefix(there) for name in names if name.startswith(there)}
    return {name: one for name, one in renamed.items() if one in own}


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name in two at its beginning and behind each dot."""
    parts = name.split(".")
    for k in range(len(parts)):
        tail = ".".join(parts[k:])
        yield name[: len(name) - len(tail)], tail
