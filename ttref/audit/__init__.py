"""Does a tensor train pay for a checkpoint on disk? One row for each matrix, read one at a time, and a verdict each.

`reading` and `gguf` list the tensors of a checkpoint, `forms` knows the trains a matrix could be and reads their sizes
off its spectra, `looking` compares one matrix with SVD, integers and noise, `sampling` says which matrices stand for
others, `seen` runs the model for the norm of its layers' outputs, `naming` finds a file's names in a model, `words`
gives reasons, `report` and `page` show and save the result, and `following` puts what pays into a model. ``python -m
ttref audit CHECKPOINT`` calls :func:`audit`.
"""

from .auditing import audit
from .following import follow
from .report import Audit

__all__ = ["Audit", "audit", "follow"]
