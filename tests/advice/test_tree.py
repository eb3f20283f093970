"""The tree of questions: what it says, that the verdicts follow it, and that its picture is it."""

import itertools
import textwrap

import pytest
import torch
from small_checkpoints import falling, noise, waves

import ttref
from ttref.advice import tree
from ttref.advice.check import does_a_train_pay

VALUES = (0.0, 0.5, 1.0, 1.0001, 1.1, 1.5, 2.0, 3.0, 3.3, 8.0, 100.0)


def by_hand(train, svd, integers):
    """The rule as one formula, for a reader who does not walk."""
    best = max(train, svd)
    if 4 * best < 1.5 * integers or best <= 1:
        return "integers" if integers > 1 else "none"
    return "train" if train > 1.1 * svd else "SVD"


def drawn(node):
    """The questions as lines, each with its answers below."""
    if isinstance(node, str):
        return f"{node}\n"
    lines = [f"{node.ask}\n"]
    for word, next_node in (("yes  ", node.yes), ("no   ", node.no)):
        first, *rest = drawn(next_node).splitlines()
        lines.append("  " + word + first + "\n" + "".join(f"  {'':5}{line}\n" for line in rest))
    return "".join(lines)


def paths(node=tree.TREE, answers=()):
    if isinstance(node, str):
        yield node, answers
        return
    yield from paths(node.yes, (*answers, True))
    yield from paths(node.no, (*answers, False))


def test_the_tree_is_the_rule():
    for ratios in itertools.product(VALUES, repeat=3):
        verdict, answers = tree.walk(*ratios)
        assert verdict == tree.judged(*ratios) == by_hand(*ratios), ratios
        assert (verdict, tuple(answer for _, answer in answers)) in set(paths())


def test_every_end_is_reached_in_at_most_three_questions():
    ends = list(paths())
    assert {verdict for verdict, _ in ends} == {"train", "SVD", "integers", "none"}
    found = (tree.walk(*ratios) for ratios in itertools.product(VALUES, repeat=3))
    walked = {(verdict, tuple(answer for _, answer in answers)) for verdict, answers in found}
    assert walked == set(ends) and max(len(answers) for _, answers in ends) == 3


def test_the_picture_in_the_docstring_is_the_tree():
    assert textwrap.indent(drawn(tree.TREE), "    ") in tree.__doc__


@pytest.mark.parametrize("weight", [waves(), noise(256, 96), falling()], ids=["waves", "noise", "spectrum"])
@pytest.mark.parametrize("eps", [0.3, 0.1, 1e-4])
def test_a_matrix_gets_the_verdict_that_the_tree_gives(weight, eps):
    found = does_a_train_pay(weight, eps)
    assert found.verdict == tree.walk(found.train, found.svd, found.integers)[0]


def test_a_model_gets_the_verdicts_that_the_tree_gives():
    advice = ttref.advise({"wpe": waves(), "fc1": noise(64, 64), "conv": torch.stack([falling()] * 2)})
    assert advice.checks
    for check in advice.checks:
        assert check["verdict"] == tree.walk(check["train"], check["svd"], check["integers"])[0]
