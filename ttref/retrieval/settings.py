"""The parameters of an index: what each must be, and which go together."""

from __future__ import annotations

from typing import Any

from ..checks import check_modes, several, whole
from .grid import STEPS
from .handover import faiss
from .stored import METRICS

CHOICES = {
    "bits": (*STEPS, 32),
    "metric": METRICS,
    "core_bits": (8, 32),
    "engine": ("auto", "int8", "float"),
    "backend": ("torch", "faiss"),
}
# In a file: every parameter, and the types in which it is written.
PARAMETERS = {
    "n_components": (int, type(None)),
    "bits": (int,),
    "metric": (str,),
    "rotate": (bool,),
    "core_bits": (int,),
    "shape": (list, type(None)),
    "rank": (int, list, type(None)),
    "engine": (str,),
    "backend": (str,),
    "random_state": (int,),
}


def check_parameters(index: Any) -> None:
    """Refuse what :meth:`TTIndex.fit` cannot use.

    Raises:
        TypeError, ValueError: They name the parameter, what it may be and what it is.
        ModuleNotFoundError: FAISS is asked for and not installed.
    """
    check_each(index)
    if index.shape is None and index.rank is not None:
        raise ValueError(
            "rank caps the ranks between shared cores, of which there is one; give shape, the modes of a "
            "document, too, or n_components, which caps the bond of the documents"
        )
    check_search(index, index.bits)


def check_each(index: Any) -> None:
    """Refuse a parameter that is nothing by itself, whatever the others are and whatever is installed."""
    for name in CHOICES:
        _check_choice(index, name)
    for name in ("bits", "core_bits"):  # 4.0 equals 4, and a file would not take it
        whole(name, getattr(index, name))
    if index.n_components is not None:
        whole("n_components", index.n_components, least=1)
    if whole("random_state", index.random_state, least=0) >= 2**64:
        raise ValueError(f"random_state must be below 2^64, got {index.random_state}")
    if not isinstance(index.rotate, bool):
        raise TypeError(f"rotate must be True or False, got {index.rotate!r}")
    if index.shape is not None:
        check_modes("shape", index.shape)
    if index.rank is not None:
        for rank in index.rank if several(index.rank) else [index.rank]:
            whole("rank", rank, least=1)


def check_search(index: Any, bits: int) -> None:
    """Refuse an engine or backend that cannot search codes of so many bits."""
    for name in ("engine", "backend"):
        _check_choice(index, name)
    if index.engine == "int8" and bits == 32:
        raise ValueError("engine='int8' needs codes of 8 bits or fewer, and bits is 32; leave engine at 'auto'")
    if index.backend == "faiss":
        faiss()


def _check_choice(index: Any, name: str) -> None:
    value = getattr(index, name)
    if isinstance(value, bool) or value not in CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, CHOICES[name]))}, got {value!r}")


def plain(value: Any) -> Any:
    """A parameter as JSON writes it: sequences as lists of integers."""
    return [whole("entry", entry) for entry in value] if several(value) else value
