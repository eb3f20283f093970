"""Does a tensor train pay? For one matrix, and for every kind of weight of a model, with the lines to type.

`check` compares train, SVD, noise and integers on one matrix, `tree` asks the questions that lead to a verdict, `kinds`
knows what a weight is from its module and name, `weights` lists the matrices of a model, `code` writes the lines to
type, and `report` shows and saves the result.
"""

from .advising import advise
from .check import Check as Check
from .check import does_a_train_pay
from .report import Advice as Advice

__all__ = ["advise", "does_a_train_pay"]
