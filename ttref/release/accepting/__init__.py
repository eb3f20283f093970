"""Is the compressed model as good as the dense one? Margins declared first, then evidence for each.

`suite` has :class:`AcceptanceSuite`, what is declared and how it is run; `metrics` has :class:`Metric` and
:class:`Scored`; `slicing` cuts the examples by length and by frequency; `judging` tests scores against margins;
`divergence` compares class distributions; `costs` measures time, memory (`live`) and bytes; `guarding` leaves the
models as they were; `hashing` names data by what they are; `report` has :class:`AcceptanceReport`.
"""

from __future__ import annotations

from .metrics import Metric, Scored
from .report import AcceptanceReport
from .slicing import frequency_slices, length_slices
from .suite import AcceptanceSuite

__all__ = ["AcceptanceReport", "AcceptanceSuite", "Metric", "Scored", "frequency_slices", "length_slices"]
