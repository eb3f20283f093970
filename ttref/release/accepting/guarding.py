"""Models are measured in evaluation mode and left as they were, whatever a metric or an interrupt does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...surgery.buffers import changed_buffers, kept_buffers, put_buffers_back
from ...surgery.edit import to_the_end


class Guard:
    """A model in evaluation mode, between :meth:`enter` and :meth:`leave`, and how it was before."""

    def __init__(self, model: nn.Module, which: str) -> None:
        self.model, self.which = model, which
        self._modes = {part: part.training for part in model.modules()}
        self._buffers = kept_buffers(self._modes)
        self._named = {part: set(part._buffers) for part in self._modes}
        self._versions = self._read()

    def enter(self) -> None:
        """Evaluation mode for each part; flags alone are set, for some modules merge weights in ``eval()``."""
        for part in self._modes:
            part.training = False

    def leave(self) -> None:
        """Modes and buffers as they were; idempotent."""
        for part, training in self._modes.items():
            part.training = training
            for name in self._new(part):
                del part._buffers[name]
        put_buffers_back(self._buffers)

    def check(self, where: str) -> None:
        """Refuse what a metric has changed."""
        changed = [f"the mode of {type(part).__name__}" for part in self._modes if part.training]
        changed += [f"the buffer {name}" for name in changed_buffers(self._buffers)]
        changed += [f"the buffer {name}, which is new" for part in self._modes for name in self._new(part)]
        if changed:
            raise ValueError(
                f"{where} changed {changed[0]}{' and more' if changed[1:] else ''}; that was put back, but a metric "
                "must leave the model as it is"
            )
        now = self._read()
        for key, (name, version) in self._versions.items():
            if key in now and now[key][1] != version:
                raise ValueError(
                    f"{where} wrote into the parameter {name}; a metric must leave the model as it is. No copy was "
                    "kept, so load the model again"
                )

    def _new(self, part: nn.Module) -> set[str]:
        return set(part._buffers) - self._named[part]

    def _read(self) -> dict[int, tuple[str, int]]:
        """Name and count of writes of each parameter; tensors of inference mode keep no count."""
        named = self.model.named_parameters()
        return {id(one): (name, 0 if one.is_inference() else one._version) for name, one in named}


@contextmanager
def guarded(dense: nn.Module, compressed: nn.Module) -> Iterator[tuple[Guard, Guard]]:
    """Both models in evaluation mode; modes, buffers and random numbers are put back at the end."""
    guards = Guard(dense, "dense"), Guard(compressed, "compressed")  # both before either enters: they may share parts
    put_draws_back = _draws()

    def put_back() -> None:
        put_draws_back()
        for guard in guards:
            guard.leave()

    try:
        for guard in guards:
            guard.enter()
        yield guards
        put_back()
    except BaseException:  # an interrupt in the midst of putting back, too
        to_the_end(put_back)
        raise


def _draws() -> Callable[[], None]:
    """A function that lets all generators of random numbers go on from here."""
    drawn, of_python = torch.get_rng_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    of_numpy = None if numpy is None else numpy.random.get_state()

    def put_back() -> None:
        torch.set_rng_state(drawn)
        random.setstate(of_python)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        if numpy is not None:
            numpy.random.set_state(of_numpy)

    return put_back


def called(function: Callable[[nn.Module, Any], Any], guard: Guard, data: Any, where: str, seed: int) -> Any:
    """What a function gives for a model, with the same random numbers each time and without gradients.

    Raises:
        RuntimeError: The function failed; its own error is the cause.
        ValueError: It changed the model.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    try:
        with torch.no_grad():
            found = function(guard.model, data)
    except Exception as error:
        raise RuntimeError(f"{where} failed, {type(error).__name__}: {error}") from error
    guard.check(where)
    return found
