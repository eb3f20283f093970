"""scikit-learn's grammar of parameters without scikit-learn, which is imported only if its own tools ask."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Self


class NotFitted(ValueError, AttributeError):
    """What scikit-learn calls NotFittedError, where scikit-learn is not loaded."""


def not_fitted(name: str) -> Exception:
    """The error of a call that comes before ``fit``: scikit-learn's own where it is loaded, so that it is caught."""
    message = f"this {name} is not fitted yet and holds no documents; call fit(X) first"
    exceptions = sys.modules.get("sklearn.exceptions")
    return exceptions.NotFittedError(message) if exceptions else NotFitted(message)


class Estimator:
    """Parameters that are the arguments of the constructor, read and set by name; ``sklearn.base.clone`` works."""

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as they were given; ``deep`` is there for scikit-learn and changes nothing."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name. What ``fit`` has used already changes with the next ``fit`` only.

        Raises:
            ValueError: A name that is no parameter; nothing is set then.
        """
        names = self._names()
        for name in params:
            if name not in names:
                raise ValueError(f"Invalid parameter {name!r} for {type(self).__name__}; it has {', '.join(names)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            input_tags=InputTags(three_d_array=True),
        )
