"""Replacing the token table of a transformers model, all of it or nothing."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from ..linears import computes_more
from ..surgery.edit import edit
from ..surgery.ties import declare, hidden
from .head import ScaledTable, TiedHead
from .tables import CompressedTable

__all__ = ["replace_embedding"]


def replace_embedding(
    model: nn.Module, embedding: nn.Module, *, head: Literal["tied", "dense"] | nn.Module | None = None
) -> tuple[nn.Module, nn.Module | None]:
    """Replace the token table of a transformers model. Nothing changes if the new one does not fit.

    The head of a language model is often tied: it scores tokens with the table itself. Compressing the table then
    compresses the head too, or unties it, and the caller must choose. Every look-up in the table gets the new one:
    encoder's and decoder's, if they share it.

    Args:
        model: A model with ``get_input_embeddings`` and ``get_output_embeddings``; changed in place. It may be wrapped
            by ``torch.compile`` or PEFT; for parallel training, replace before wrapping.
        embedding: :class:`MPSEmbedding`, :class:`TTMEmbedding`, or an ``nn.Embedding`` (to put the dense one back).
        head: ``"tied"`` scores with the new table too, ``"dense"`` keeps the old matrix for the scores. A module, such
            as the head that was replaced before, becomes the head. May be left out for a model whose head is not tied
            to its table, and for one without a head.

    Returns:
        The look-up and the head (or None) that the model had:
        ``replace_embedding(model, before[0], head=before[1])`` undoes the change.

    Raises:
        TypeError: A model without token table, an embedding of another kind, or a look-up or head that computes more
            than torch's own (hooks included), which would be lost.
        ValueError: Another size or dtype; ``head`` left out though the head is tied; ``"tied"`` for a head that is not
            tied, or without a head; a module that uses the old table or head without registering it.

    Warns:
        UserWarning: ``"dense"`` on a tied model: the dense matrix stays for the head, so no memory is saved. The
            message tells the bytes.

    Scaled rows:
        Gemma, BART and similar models multiply each row by ``embed_scale`` after the look-up. A compressed table is
        wrapped in a module that does the same: ``model.get_input_embeddings().table`` is the table, and a tied head
        scores with it unscaled, as the model's own did. A table subclass that overrides ``forward`` is not wrapped.

    Weights that are read:
        Some models read ``weight`` of table or head in their forward pass (Mamba for its dtype, MobileBERT and DeBERTa
        for their scores). The whole matrix is rebuilt at each access: they run, slower and with the memory of a dense
        table.

    Saving:
        ``save_pretrained``, and with it the checkpoints of a Trainer, writes a compressed table once. To have a folder
        that ``from_pretrained`` loads once ``ttref`` is imported, first set ``model.config.quantization_config =
        TensorTrainConfig(describe_model(model))`` (from ``ttref.release.quantizer`` and ``ttref.release.placing``), or
        write it with ``ttref.release.save_release``. Without, ``load_state_dict(..., strict=False)`` reads the file
        into a model prepared in the same way. For a file that anybody can read, save the model with its dense table
        put back.

    PEFT:
        ``modules_to_save`` with the name of the table trains a copy of it, and a tied head scores with that copy while
        it is active; with the name of the head only its bias is trained. PEFT's warning that it found nothing tied is
        about dense weights.

    More tokens:
        After ``embedding.append(rows)`` look-up and head know the new tokens, their bias is 0. A loss computed by
        the model itself also needs ``model.config.vocab_size = embedding.num_embeddings``.
        ``resize_token_embeddings`` works on dense tables only, and raises a TypeError here.

    Cost:
        O(number of modules and parameters); rows are looked up only to recognize a scaled look-up.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from ttref import MPSEmbedding
        >>> sizes = dict(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=1)
        >>> model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
        >>> table = MPSEmbedding.from_embedding(model.get_input_embeddings(), rank=2)
        >>> before = replace_embedding(model, table, head="tied")
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape, type(model.lm_head).__name__
        (torch.Size([1, 3, 50]), 'TiedHead')
        >>> _ = replace_embedding(model, before[0], head=before[1])           # and back
    """
    look_up, scores = _parts(model)
    _check_fit(look_up, embedding)
    made = _scaled_alike(look_up, embedding)
    places = _places(model, look_up)
    _check_places(places, look_up)
    tied = _reads(scores, _numbers(look_up)) or any(not _looks_up(module) for _, _, module in places)
    if not isinstance(head, nn.Module):
        if head not in ("tied", "dense", None):
            raise ValueError(f'head must be "tied", "dense" or a module, got {head!r}')
        if head is None and tied:
            raise ValueError(
                "the model scores tokens with the table it looks them up in, so say what becomes of the scores: "
                'head="tied" takes them from the new table too, head="dense" keeps the old matrix for them'
            )
        if head == "tied" and not (tied or _reads(scores, _numbers(embedding))):
            why = "has no output head" if scores is None else "scores tokens with a matrix of its own"
            raise ValueError(f"the model {why}, so there is nothing to tie; leave head out")
        if head == "dense" and isinstance(scores, TiedHead):
            raise ValueError("the head has no dense matrix to keep: put the dense table back first, with head='tied'")
    swapped = {look_up: made}  # every module that reads the old numbers, and what reads the new ones instead
    for _, _, module in places:
        if module not in swapped and _looks_up(module):
            swapped[module] = made
        elif module not in swapped and (head == "tied" or (isinstance(head, nn.Module) and module is not scores)):
            swapped[module] = _tied_head(made, module)
    if isinstance(head, nn.Module):
        swapped[scores] = head
    elif head == "tied" and scores not in swapped:
        swapped[scores] = _tied_head(made, scores)
    for module, new in swapped.items():
        # A head given by the caller may compute anything.
        more = None if module is scores and new is head else computes_more(module, type(module).forward)
        if more:
            raise TypeError(
                f"the model's {type(module).__name__} {more}, which would be lost (enable_input_require_grads() hangs "
                "one onto the table); take it off, and put it onto the new module afterwards"
            )
    for part in model.modules():
        if part not in swapped and (used := [one for one in hidden(part) if one in swapped]):
            raise ValueError(
                f"a {type(part).__name__} of the model uses the {type(used[0]).__name__} without holding it as a "
                "module: it would go on with the old one; take it away there first, and give it the new one afterwards"
            )
    if head == "dense" and tied and isinstance(embedding, CompressedTable):
        kept = look_up.weight.numel() * look_up.weight.element_size()
        warnings.warn(
            f"the head keeps its dense matrix of {kept:,} bytes, so nothing is saved: the compressed table of "
            f'{embedding.nbytes:,} bytes comes on top. head="tied" shares it',
            stacklevel=2,
        )
    with edit(model):
        model.set_input_embeddings(made)
        if swapped.get(scores, scores) is not model.get_output_embeddings():
            model.set_output_embeddings(swapped[scores])
        for parent, name, module in places:
            if module in swapped and parent._modules.get(name) is module:
                setattr(parent, name, swapped[module])
        for part in {*swapped, *swapped.values()}:
            if isinstance(part, TiedHead):
                part._place = None
        parent, name = next((parent, name) for parent, name, module in _places(model, made) if module is made)
        for part in model.modules():
            if isinstance(part, TiedHead) and part.table is _numbers(made):
                part._place = parent, name
        declare(model, made, untied=head == "dense")
    return look_up, scores


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """The model's token table and its head, if it has one."""
    names = ("get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings")
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in names):
        inside = getattr(model, "module", None)
        raise TypeError(
            f"{type(model).__name__} has no get_input_embeddings() and its like; "
            + (
                f"replace the table of the {type(inside).__name__} inside, model.module, before it is wrapped"
                if isinstance(inside, nn.Module)
                else "for a module of your own, assign the table to its attribute, and a TiedHead to that of the head"
            )
        )
    look_up, scores = model.get_input_embeddings(), model.get_output_embeddings()
    if not _looks_up(look_up):
        raise TypeError(f"the model's token table is a {type(look_up).__name__}, not an nn.Embedding")
    return look_up, scores


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, (CompressedTable, ScaledTable, nn.Embedding))


def _check_fit(look_up: nn.Module, embedding: nn.Module) -> None:
    """Refuse a table that cannot stand where the model's own stands."""
    if not _looks_up(embedding):
        raise TypeError(
            f"embedding must be an MPSEmbedding, a TTMEmbedding or an nn.Embedding, got {type(embedding).__name__}"
        )
    for name in ("num_embeddings", "embedding_dim"):
        if getattr(embedding, name) != getattr(look_up, name):
            raise ValueError(
                f"{name} is {getattr(embedding, name)}, but the model's table has {getattr(look_up, name)}"
            )
    new, old = (part.weight.dtype if isinstance(part, nn.Embedding) else part.dtype for part in (embedding, look_up))
    if new != old:
        raise ValueError(f"the new table is {new}, but the model's table is {old}; convert one with .to(dtype)")


def _scaled_alike(look_up: nn.Module, embedding: nn.Module) -> nn.Module:
    """The embedding, scaled as the model's own look-up scales; TypeError where that does more than scale."""
    if _is_plain(look_up) or not _is_plain(embedding):  # an overridden forward may scale by itself
        return embedding
    scale = _scale(look_up)
    if scale is not None and isinstance(embedding, CompressedTable):
        return ScaledTable(embedding, scale)
    kind = type(look_up).__name__
    raise TypeError(
        f"the model's table is a {kind}, which does more than look up, and a plain table in its place would lose that. "
        + (
            "Give a copy of it with other rows: new = copy.deepcopy(model.get_input_embeddings()); new.weight = ..."
            if isinstance(embedding, nn.Embedding)
            else f"Give a subclass of {type(embedding).__name__} whose forward does the same with its rows"
        )
    )


def _is_plain(table: nn.Module) -> bool:
    return type(table).forward in (nn.Embedding.forward, CompressedTable.forward)


@torch.no_grad()
def _scale(look_up: nn.Module) -> float | Tensor | None:
    """The number that a look-up multiplies its rows by; None if it does anything else."""
    scale = getattr(look_up, "embed_scale", None)
    if isinstance(look_up, ScaledTable) or not isinstance(scale, (int, float, Tensor)):
        return scale
    if look_up.weight.is_meta:  # no numbers to try it with
        return scale
    rows = look_up.num_embeddings
    ids = torch.tensor([0, rows // 3, rows // 2, rows - 1], device=look_up.weight.device)
    plain = nn.Embedding.forward(look_up, ids)
    expected = plain * (scale.to(plain.dtype) if isinstance(scale, Tensor) else scale)
    return scale if torch.allclose(type(look_up).forward(look_up, ids), expected) else None


def _numbers(table: nn.Module) -> nn.Module | nn.Parameter | None:
    """The numbers of a look-up: a compressed table, or the dense weight."""
    if isinstance(table, ScaledTable):
        return table.table
    return table if isinstance(table, CompressedTable) else table._parameters.get("weight")


def _reads(module: nn.Module | None, numbers: nn.Module | nn.Parameter | None) -> bool:
    """True if a look-up or a head computes with these numbers."""
    if isinstance(module, (ScaledTable, TiedHead)):
        return module.table is numbers
    held = [] if module is None else [module, *module._parameters.values()]
    return numbers is not None and any(one is numbers for one in held)


def _places(model: nn.Module, look_up: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and module of each look-up and head that computes with the numbers of the look-up."""
    numbers = _numbers(look_up)
    return [
        (parent, name, module)
        for parent in model.modules()
        if not isinstance(parent, (ScaledTable, TiedHead))
        for name, module in parent._modules.items()
        if _reads(module, numbers)
    ]


def _check_places(places: list[tuple[nn.Module, str, nn.Module]], look_up: nn.Module) -> None:
    """Refuse a model whose look-ups in one table compute differently."""
    for _, name, module in places:
        if _looks_up(module) and module is not look_up:
            one, other = (None if _is_plain(part) else _scale(part) for part in (look_up, module))
            if type(module).forward is not type(look_up).forward or one != other:
                raise TypeError(
                    f"the model looks tokens up in the same table in two ways, with a {type(look_up).__name__} and, as "
                    f"{name}, with a {type(module).__name__}; one table cannot stand for both"
                )


def _tied_head(made: nn.Module, scores: nn.Module) -> nn.Module:
    """A head for the new table with the bias that the old head had."""
    if not isinstance(scores, TiedHead) and type(scores).forward is not nn.Linear.forward:
        raise TypeError(
            f"the head is a {type(scores).__name__}, which computes in a way of its own, and a TiedHead would lose "
            'that; head="dense" keeps it, and head=module puts in one that you have made'
        )
    bias = getattr(scores, "bias", None)
    if not isinstance(made, nn.Embedding):
        return TiedHead(_numbers(made), bias).train(scores.training)
    head = nn.utils.skip_init(nn.Linear, made.embedding_dim, made.num_embeddings, bias=False)
    head.weight, head.bias = made.weight, bias
    return head.train(scores.training)
