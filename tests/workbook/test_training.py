"""The training loop: what it learns, what it leaves alone, and what is left when it goes wrong."""

import copy
import math

import pytest
import torch
from strategies import gaussian
from torch import nn

from book.workbook.training import accuracy, fit
from ttref import TTLinear

torch.manual_seed(0)
X = gaussian((90, 6), 0, torch.float32)
Y = (X[:, :3].argmax(1)).long()


def classifier(seed=0):
    """Compressed and dense layers, and one that keeps statistics of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(TTLinear((2, 3), (4, 4), 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def state(model):
    return copy.deepcopy(model.state_dict())


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_it_learns():
    model = classifier()
    losses = fit(model, X, Y, epochs=30, lr=0.01)
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    assert accuracy(model.eval(), X, Y) > 0.9


def test_a_loss_is_the_mean_over_the_examples_in_nats():
    """At a learning rate of zero: also where the last batch is smaller than the others."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(X), Y).item()
    assert fit(model, X, Y, epochs=2, lr=0.0, batch_size=64) == pytest.approx([expected] * 2, rel=1e-5)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    assert fit(model, X, Y, epochs=1, lr=0.0) == pytest.approx([math.log(3)])


def test_no_epochs_change_nothing():
    model = classifier()
    before = state(model)
    assert fit(model, X, Y, epochs=0) == [] and same(model, before)


def test_equal_seeds_give_equal_results():
    models = [classifier() for _ in range(3)]
    losses = [fit(model, X, Y, epochs=3, seed=seed) for model, seed in zip(models, (5, 5, 6), strict=True)]
    assert losses[0] == losses[1] != losses[2]
    assert same(models[0], models[1].state_dict()) and not same(models[0], models[2].state_dict())


def test_the_callers_random_numbers_are_not_used_up():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model = nn.Linear(6, 3)
    torch.manual_seed(3)
    fit(model, X, Y, epochs=2)
    assert torch.equal(torch.rand(4), expected)


def test_weight_decay_pulls_towards_zero():
    free, held = nn.Linear(6, 3), nn.Linear(6, 3)
    held.load_state_dict(free.state_dict())
    fit(free, X, Y, epochs=30, lr=0.01)
    fit(held, X, Y, epochs=30, lr=0.01, weight_decay=1.0)
    assert held.weight.norm() < 0.5 * free.weight.norm()


def test_what_is_frozen_does_not_move():
    model = classifier()
    model[0].cores[1].requires_grad_(False)
    model[3].requires_grad_(False)
    frozen = [model[0].cores[1], *model[3].parameters()]
    moving = [p for p in model.parameters() if p.requires_grad]
    before = [[p.detach().clone() for p in group] for group in (frozen, moving)]
    fit(model, X, Y, epochs=2, weight_decay=0.1)
    assert all(torch.equal(p, old) for p, old in zip(frozen, before[0], strict=True))
    assert not any(torch.equal(p, old) for p, old in zip(moving, before[1], strict=True))
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("training", [True, False])
def test_flags_and_gradients_are_left_as_they_were(training):
    """Also of a part that its owner holds in evaluation mode."""
    model = classifier().train(training)
    model[1].eval()
    fit(model, X, Y, epochs=1)
    assert [module.training for module in model] == [training, False, training, training]
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())


def test_after_each_epoch_the_model_is_ready_for_evaluation():
    model, seen = classifier().train(), []
    fit(model, X, Y, epochs=3, after_epoch=lambda epoch: seen.append((epoch, model.training, accuracy(model, X, Y))))
    assert [entry[:2] for entry in seen] == [(1, False), (2, False), (3, False)]
    assert model.training


class Diverges(nn.Module):
    """Sound for some batches; then its output is not a number any more."""

    def __init__(self, batches):
        super().__init__()
        self.inner, self.left = classifier(), batches

    def forward(self, x):
        self.left -= 1
        return self.inner(x) * (1.0 if self.left >= 0 else float("nan"))


class BadGradient(nn.Module):
    """The loss is finite and its gradient is not: the step after it spoils the model, and no later loss tells."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, x):
        return self.inner(x) + (self.inner[3].bias * 0).abs().sqrt().sum()


def assert_put_back(model, error, message, x=X, y=Y, **options):
    before, training = state(model), model.training
    with pytest.raises(error, match=message):
        fit(model, x, y, **{"epochs": 3, **options})
    assert same(model, before) and model.training == training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_loss_that_is_no_number_puts_the_model_back(batches, training):
    """Weights and running statistics, in the first step as in a later epoch."""
    message = f"the loss became nan in epoch {1 + batches // 2}; the model has been put back .*than 0.02 usually"
    assert_put_back(Diverges(batches).train(training), FloatingPointError, message, lr=0.02)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_gradient_that_is_no_number_puts_the_model_back(epochs):
    assert_put_back(
        BadGradient(), FloatingPointError, "became (nan|NaN or infinite) in epoch 1", epochs=epochs, batch_size=90
    )


def test_a_learning_rate_beyond_reason_puts_the_model_back():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    assert_put_back(model, FloatingPointError, r"in epoch 1; .* smaller learning rate than 1e\+30", lr=1e30)


def test_a_class_that_does_not_exist_puts_the_model_back():
    y = Y.clone()
    y[70] = 7
    assert_put_back(classifier(), IndexError, "Target 7 is out of bounds", y=y, batch_size=8)


def test_an_error_of_the_callers_puts_the_model_back():
    def stop(epoch):
        if epoch == 2:
            raise RuntimeError("the disk is full")

    assert_put_back(classifier().eval(), RuntimeError, "the disk is full", after_epoch=stop)


def holed():
    x = X.clone()
    x[4, 2] = float("inf")
    return x


def frozen():
    return classifier().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "x", "y", "message"),
    [
        (frozen(), X, Y, "every parameter of the model is frozen"),
        (nn.ReLU(), X, Y, "every parameter of the model is frozen"),
        (classifier(), holed(), Y, "x has entries that are NaN or Inf"),
        (classifier(), X, Y[:-1], "x holds 90 examples and y 89 classes"),
        (classifier(), X[:-1], Y, "x holds 89 examples and y 90 classes"),
        (classifier(), X[:0], Y[:0], "x holds 0 examples"),
    ],
)
def test_bad_input(model, x, y, message):
    assert_put_back(model, ValueError, message, x=x, y=y)


def test_accuracy_is_the_share_of_right_answers():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 2.0]], requires_grad=True)
    score = accuracy(nn.Identity(), logits, torch.tensor([0, 1, 1, 1]))
    assert score == 0.75 and type(score) is float


def test_accuracy_changes_nothing():
    model = classifier().eval()
    before = state(model)
    accuracy(model, X, Y)
    assert same(model, before) and not model.training


def test_an_interrupt_puts_the_model_back():
    model = nn.Linear(4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, torch.randn(8, 4), torch.zeros(8, dtype=torch.long), epochs=3, after_epoch=stop)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
