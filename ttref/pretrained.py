"""The classes of transformers, by the names that files have for them."""

from __future__ import annotations

from typing import Any


def model_class(name: Any) -> Any:
    """The class of this name if it is a model of transformers, else None: a name from a file is of anything.

    Example:
        >>> model_class("GPT2Model").__name__, model_class("AutoConfig"), model_class(7)
        ('GPT2Model', None, None)
    """
    import transformers

    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) else None
