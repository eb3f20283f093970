"""The output head that shares a compressed table, and putting a table into a model."""

from __future__ import annotations

import re
import warnings
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .tables import CompressedTable

__all__ = ["TiedHead", "replace_embedding"]

_PLAIN_NAME = re.compile(r"[\w.]+\.(weight|bias)")  # a parameter's; other entries are patterns, and not of tables


class TiedHead(nn.Module):
    """Scores for every token from a compressed table, which the look-up and the head share: ``table.logits(hidden)``.

    Args:
        table: The compressed table; it stays the one that the model looks rows up in.
        bias: ``(num_embeddings,)``, as the dense head had it, or None.

    Example:
        >>> import torch
        >>> from ttref import MPSEmbedding
        >>> table = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=4)
        >>> TiedHead(table)(torch.randn(2, 5, 48)).shape
        torch.Size([2, 5, 100])
    """

    def __init__(self, table: CompressedTable, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        if not isinstance(table, CompressedTable):
            raise TypeError(f"a TiedHead needs an MPSEmbedding or a TTMEmbedding, got {type(table).__name__}")
        self._table = (table,)  # a tuple hides it: the look-up owns it, and the model's state holds it once
        self.register_parameter("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(*batch, embedding_dim)`` to ``(*batch, num_embeddings)``."""
        scores = self.table.logits(hidden)
        if self.bias is None:
            return scores
        bias = F.pad(self.bias, (0, self.out_features - len(self.bias)))  # tokens added since have none
        return scores + bias.to(scores.dtype)

    @property
    def table(self) -> CompressedTable:
        """The compressed table, which is no submodule of the head."""
        return self._table[0]

    @property
    def in_features(self) -> int:
        """Width of the vectors."""
        return self.table.embedding_dim

    @property
    def out_features(self) -> int:
        """How many tokens are scored: what has been appended to the table counts."""
        return self.table.num_embeddings


def replace_embedding(
    model: nn.Module, embedding: nn.Module, *, head: Literal["tied", "dense"] | nn.Module | None = None
) -> tuple[nn.Module, nn.Module | None]:
    """Put another token table into a transformers model. Nothing changes if it does not fit.

    A language model often scores tokens with the same matrix that it looks them up in. Then compressing the table has
    two meanings, and the caller must choose one.

    Args:
        model: A model with ``get_input_embeddings`` and ``get_output_embeddings``; changed in place.
        embedding: :class:`MPSEmbedding`, :class:`TTMEmbedding`, or an ``nn.Embedding`` (to put the dense one back).
        head: ``"tied"`` scores with the new table too, ``"dense"`` keeps the old matrix for the scores. A module, such
            as the head that was replaced before, becomes the head. May be left out for a model whose head shares
            nothing with its table, and for one without a head.

    Returns:
        The look-up and the head (or None) that the model had:
        ``replace_embedding(model, before[0], head=before[1])`` undoes the change.

    Raises:
        TypeError: A model without token table, an embedding of another kind, or a look-up that does more than look up
            (some models scale the rows there), which would be lost.
        ValueError: Another size or dtype; ``head`` left out though the head is tied; ``"tied"`` where the head has a
            matrix of its own, or where there is none.

    Warns:
        UserWarning: ``"dense"`` on a tied model: the dense matrix stays for the head, so nothing is saved. The message
            tells the bytes.

    Saving:
        ``save_pretrained`` writes a compressed table under names that ``from_pretrained`` does not know. Save the table
        with ``embedding.save(path)`` and the model with its dense table put back; then load both and replace again.

    More tokens:
        After ``embedding.append(rows)`` look-up and head know the new tokens, their bias is 0. A loss computed by
        the model itself also needs ``model.config.vocab_size = embedding.num_embeddings``.
        ``resize_token_embeddings`` works on dense tables only.

    Cost:
        None to speak of.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from ttref import MPSEmbedding
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=1,
        ...                                    bos_token_id=None, eos_token_id=None))
        >>> table = MPSEmbedding.from_embedding(model.get_input_embeddings(), rank=2)
        >>> before = replace_embedding(model, table, head="tied")
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape, type(model.lm_head).__name__
        (torch.Size([1, 3, 50]), 'TiedHead')
        >>> _ = replace_embedding(model, before[0], head=before[1])           # and back
    """
    look_up, scores = _parts(model)
    _check_fit(look_up, embedding)
    tied = _share(look_up, scores)
    if isinstance(head, nn.Module):
        return _put(model, embedding, head)
    if head not in ("tied", "dense", None):
        raise ValueError(f'head must be "tied", "dense" or a module, got {head!r}')
    if head is None and tied:
        raise ValueError(
            "the model scores tokens with the table it looks them up in, so say what becomes of the scores: "
            'head="tied" takes them from the new table too, head="dense" keeps the old matrix for them'
        )
    if head == "tied" and not (tied or _share(embedding, scores)):
        why = "has no output head" if scores is None else "scores tokens with a matrix of its own"
        raise ValueError(f"the model {why}, so there is nothing to tie; leave head out")
    if head == "dense" and isinstance(scores, TiedHead):
        raise ValueError("the head has no dense matrix to keep: put the dense table back first, with head='tied'")
    if head == "dense" and tied and isinstance(embedding, CompressedTable):
        kept = scores.weight.numel() * scores.weight.element_size()
        warnings.warn(
            f"the head keeps its dense matrix of {kept:,} bytes, so nothing is saved: the compressed table of "
            f'{embedding.nbytes:,} bytes comes on top. head="tied" shares it',
            stacklevel=2,
        )
    return _put(model, embedding, _tied_head(embedding, scores) if head == "tied" else scores)


def _put(model: nn.Module, look_up: nn.Module, scores: nn.Module | None) -> tuple[nn.Module, nn.Module | None]:
    """Set table and head, or neither; returns those that were there."""
    before = model.get_input_embeddings(), model.get_output_embeddings()
    try:
        _set(model, look_up, scores)
    except BaseException:
        _set(model, *before)
        raise
    return before


def _set(model: nn.Module, look_up: nn.Module, scores: nn.Module | None) -> None:
    model.set_input_embeddings(look_up)
    if model.get_output_embeddings() is not scores:
        model.set_output_embeddings(scores)
    if not hasattr(model, "get_expanded_tied_weights_keys"):
        return
    # transformers ties weights by name whenever it loads or saves, and a compressed table has no such weight. The names
    # are taken out here, and not by config.tie_word_embeddings, which some models read while they compute.
    for part in model.modules():
        if not isinstance(getattr(part, "_tied_weights_keys", None), dict):
            continue
        part.__dict__.pop("_tied_weights_keys", None)  # back to what the class says
        names = {name for name, _ in part.named_parameters(remove_duplicate=False)}
        kept = {
            target: source
            for target, source in part._tied_weights_keys.items()
            if all(name in names or not _PLAIN_NAME.fullmatch(name) for name in (target, source))
        }
        if kept != part._tied_weights_keys:
            part._tied_weights_keys = kept
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _check_fit(look_up: nn.Module, embedding: nn.Module) -> None:
    """Refuse a table that cannot stand where the model's own stands."""
    if not isinstance(embedding, (CompressedTable, nn.Embedding)):
        raise TypeError(
            f"embedding must be an MPSEmbedding, a TTMEmbedding or an nn.Embedding, got {type(embedding).__name__}"
        )
    if isinstance(look_up, nn.Embedding) and type(look_up).forward is not nn.Embedding.forward:
        if type(embedding).forward is not type(look_up).forward:
            raise TypeError(
                f"the model's table is a {type(look_up).__name__}, which does more than look up (it scales, mostly); "
                "a plain table in its place would lose that. Wrap the new table in a module that does the same"
            )
    for name in ("num_embeddings", "embedding_dim"):
        if getattr(embedding, name) != getattr(look_up, name):
            raise ValueError(
                f"{name} is {getattr(embedding, name)}, but the model's table has {getattr(look_up, name)}"
            )
    new, old = (part.dtype if isinstance(part, CompressedTable) else part.weight.dtype for part in (embedding, look_up))
    if new != old:
        raise ValueError(f"the new table is {new}, but the model's table is {old}; convert one with .to(dtype)")


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """The model's token table and its head, if it has one."""
    names = ("get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings")
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in names):
        raise TypeError(
            f"{type(model).__name__} has no get_input_embeddings() and its like; for a module of your own, "
            "assign the table to its attribute, and a TiedHead to that of the head"
        )
    look_up, scores = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(look_up, (CompressedTable, nn.Embedding)):
        raise TypeError(f"the model's token table is a {type(look_up).__name__}, not an nn.Embedding")
    return look_up, scores


def _share(look_up: nn.Module, scores: nn.Module | None) -> bool:
    """Whether the head scores with the numbers of the table."""
    if isinstance(scores, TiedHead):
        return scores.table is look_up
    weight = getattr(look_up, "weight", None)
    return weight is not None and getattr(scores, "weight", None) is weight


def _tied_head(embedding: nn.Module, scores: nn.Module) -> nn.Module:
    """A head for the table with the bias that the old head had."""
    bias = getattr(scores, "bias", None)
    if isinstance(embedding, CompressedTable):
        return TiedHead(embedding, bias).train(scores.training)
    head = nn.utils.skip_init(nn.Linear, embedding.embedding_dim, embedding.num_embeddings, bias=False)
    head.weight, head.bias = embedding.weight, bias
    return head.train(scores.training)
