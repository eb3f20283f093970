"""The same train in TensorLy, torchTT and quimb: both ways, nothing is decomposed again.

A train here is a list of cores ``(r_{k-1}, n_k, r_k)``, a TT-matrix one of cores ``(r_{k-1}, m_k, n_k, r_k)``, rows
first. Four axes always mean a TT-matrix: no peer has batches of trains, and they are refused, but a batch of one whose
ranks are all 1, ``(1, 1, n_k, 1)``, has the shapes of a TT-matrix and is read as one. The peers keep the same numbers
in objects of their own:

========  ================  ======================  ===========================================================
package   imported as       a train                 a TT-matrix
========  ================  ======================  ===========================================================
TensorLy  ``tensorly``      ``TTTensor``            ``TTMatrix``
torchTT   ``torchtt``       ``TT``                  ``TT``, with ``is_ttm`` true
quimb     ``quimb.tensor``  ``MatrixProductState``  ``MatrixProductOperator``: rows upper, columns lower indices
========  ================  ======================  ===========================================================

``from torchTT import TensorTrain``, a line that goes round, fails twice: torchTT is the name on the package index, the
module is ``torchtt``, and its class is ``TT``. The line that works is ``from torchtt import TT``.

A peer is imported when one of its functions is called; the module itself needs torch alone. Cores are handed over, not
copied: torch tensors stay on their device and in their graph, so gradients pass through a peer that computes with
torch. What changes a core in place changes it on both sides; clone the cores where that matters. NumPy arrays that
torch cannot share are copied: those of negative strides, of the other byte order, or that may not be written to.
"""

from .with_quimb import from_quimb, to_quimb
from .with_tensorly import from_tensorly, to_tensorly
from .with_torchtt import from_torchtt, to_torchtt

__all__ = ["from_quimb", "from_tensorly", "from_torchtt", "to_quimb", "to_tensorly", "to_torchtt"]
