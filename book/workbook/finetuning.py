"""A sentence encoder with a linear head, as a classifier for `book.workbook.training.fit`.

The encoder and the head are plain modules, so adapters are added as to any model: by `peft.get_peft_model` and
`ttref.add_tt_lora`, with `modules_to_save=["head"]` if the head is to be trained too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SentenceClassifier", "encode", "trainable_parameters"]

PADDING, SEPARATOR = 0, 102  # [PAD] and [SEP] in BERT's vocabulary
BATCH = 64


class SentenceClassifier(nn.Module):
    """A BERT encoder, the mean of its last hidden states over the real tokens, and a linear head.

    The encoder is not copied, and its dropout is switched off: over the tens of steps of a chapter it only adds noise,
    and without it equal seeds give equal results.

    Args:
        encoder: A transformers `BertModel`.
        classes: Number of classes.
        seed: For the head's initial weight, uniform as in `nn.Linear`; the bias starts at zero.

    Shape:
        - Input: int64 `(batch, length)`, token ids padded with 0 on the right, as `encode` makes them.
        - Output: logits `(batch, classes)`.

    Cost:
        About one multiply-add for each token and parameter of the layers (10.6 million in MiniLM); padding beyond the
        longest text of a batch is cut off. Without gradients, texts are processed 64 at a time, in the order of their
        lengths.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(hidden_size=8, intermediate_size=8)
        >>> sizes |= dict(num_hidden_layers=1, num_attention_heads=2)
        >>> encoder = BertModel(BertConfig(vocab_size=200, **sizes))
        >>> model = SentenceClassifier(encoder, classes=3)
        >>> model(torch.tensor([[101, 7, 8, 102, 0, 0], [101, 9, 102, 0, 0, 0]])).shape
        torch.Size([2, 3])
    """

    def __init__(self, encoder: Any, classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.head = nn.Linear(width, classes)
        bound, generator = width**-0.5, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.uniform_(-bound, bound, generator=generator)
            self.head.bias.zero_()
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of each text."""
        if torch.is_grad_enabled() or len(ids) <= BATCH:
            return self.head(self.pooled(ids))
        order = (ids != PADDING).sum(1).argsort()
        logits = torch.cat([self.head(self.pooled(part)) for part in ids[order].split(BATCH)])
        return logits[order.argsort()]

    def pooled(self, ids: Tensor) -> Tensor:
        """Mean of the last hidden states over the real tokens, `(batch, width)`."""
        real = ids != PADDING
        ids, real = ids[:, : real.sum(1).max()], real[:, : real.sum(1).max()]
        ends = (ids == SEPARATOR).long()
        second = ((ends.cumsum(1) - ends) > 0) & real  # tokens after the first [SEP]: the second text of a pair
        hidden = self.encoder(input_ids=ids, attention_mask=real.long(), token_type_ids=second.long()).last_hidden_state
        weights = real.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def encode(tokenizer: Any, texts: Sequence[str] | Sequence[tuple[str, str]], length: int) -> Tensor:
    """Token ids of texts, or of pairs of texts, in one tensor.

    Args:
        tokenizer: A BERT tokenizer (its [PAD] is 0, its [SEP] 102).
        texts: Strings, or pairs of strings; a pair becomes `[CLS] first [SEP] second [SEP]`.
        length: Tokens kept of each, [CLS] and [SEP] included; of a pair the longer text is cut first.

    Returns:
        LongTensor `(count, length)`, padded with 0.

    Raises:
        ValueError: No texts, a length under 4, or a tokenizer with other special ids.

    Example:
        >>> from book.workbook.sources import load_encoder
        >>> encode(load_encoder().tokenizer, ["a train", "cars"], length=5).tolist()
        [[101, 1037, 3345, 102, 0], [101, 3765, 102, 0, 0]]
    """
    if (tokenizer.pad_token_id, tokenizer.sep_token_id) != (PADDING, SEPARATOR):
        raise ValueError(
            f"the tokenizer has [PAD] {tokenizer.pad_token_id} and [SEP] {tokenizer.sep_token_id}; "
            f"SentenceClassifier reads BERT's {PADDING} and {SEPARATOR}"
        )
    if not texts or length < 4:
        raise ValueError(f"at least one text and a length of at least 4 are needed, got {len(texts)} and {length}")
    found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return found["input_ids"]


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Count trainable parameters: `{"head": ..., "adapter": ...}`, the second of all modules but the head.

    Example:
        >>> from torch import nn
        >>> parts = {"core": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 3)}
        >>> trainable_parameters(nn.ModuleDict(parts))
        {'head': 9, 'adapter': 4}
    """
    counts = {"head": 0, "adapter": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["head" if "head" in name.split(".") else "adapter"] += parameter.numel()
    return counts
