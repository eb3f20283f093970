"""One training loop for the small models of the book, which restores the model if training fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["accuracy", "fit"]


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 64,
    weight_decay: float = 0.0,
    seed: int = 0,
    after_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Train a classifier in place with Adam on the cross-entropy.

    Args:
        model: Maps ``(batch, features)`` to ``(batch, classes)``. Frozen parameters stay as they are; the whole model
            is in training mode meanwhile, and gradients are cleared afterwards.
        x: Inputs ``(count, features)``.
        y: Classes ``(count,)``, int64.
        epochs: Passes over the data.
        lr: Adam's learning rate.
        batch_size: Examples in one step; the order is drawn anew in every epoch.
        weight_decay: Adam's L2 penalty.
        seed: For the order of the examples; equal seeds give equal results on one machine, unless the model itself
            draws random numbers (dropout).
        after_epoch: Called with 1, 2, ... after each epoch, with the model in evaluation mode.

    Returns:
        Mean loss of each epoch, in nats.

    Raises:
        ValueError: Every parameter is frozen, NaN or Inf among the inputs, or not one class for each example.
        FloatingPointError: The loss or a parameter became NaN or infinite. After this and any other error during
            training, the model is restored to its state before the call.

    Cost:
        About six times the multiply-adds of a forward pass for each example and epoch.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> losses = fit(nn.Linear(4, 4), x, torch.arange(4), epochs=50, lr=0.1)
        >>> losses[-1] < losses[0]
        True
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("every parameter of the model is frozen; set requires_grad on those to be trained")
    if not x.isfinite().all():
        raise ValueError("x has entries that are NaN or Inf; clean or drop those examples first")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x holds {len(x)} examples and y {len(y)} classes; equally many are needed, at least one")
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    flags, losses = [(module, module.training) for module in model.modules()], []
    advice = (
        "the model has been put back to where it was before training. "
        f"A smaller learning rate than {lr:g} usually helps"
    )
    try:
        for epoch in range(1, epochs + 1):
            model.train()
            total = 0.0
            for pick in torch.randperm(len(x), generator=generator).split(batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[pick]), y[pick])
                if not loss.isfinite():
                    raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch}; {advice}")
                loss.backward()
                optimizer.step()
                total += loss.item() * len(pick)
            if not all(parameter.isfinite().all() for parameter in parameters):  # no loss follows the last step
                raise FloatingPointError(f"a parameter became NaN or infinite in epoch {epoch}; {advice}")
            losses.append(total / len(x))
            if after_epoch is not None:
                model.eval()
                after_epoch(epoch)
    except BaseException:  # Ctrl-C too
        model.load_state_dict(before)
        raise
    finally:
        optimizer.zero_grad()
        for module, training in flags:
            module.training = training
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of examples whose largest logit is the right class, in [0, 1].

    Example:
        >>> import torch
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    return (model(x).argmax(-1) == y).double().mean().item()
