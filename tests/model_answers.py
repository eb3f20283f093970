"""What the tests over many models share: what a model answers, and which of its weights are tied."""

import torch
from torch import nn

WORDS, WIDTH = 50, 16
IDS = torch.tensor([[5, 6, 7, WORDS - 1]])


def output(model):
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def plain(look_up):
    """The rows of a table, whatever it does with them."""
    return nn.Embedding.from_pretrained(look_up.weight.detach().clone(), freeze=False)


def ties(model):
    """All that transformers is told about ties, and where."""
    found = {}
    parts = [(name, part) for name, part in model.named_modules() if hasattr(part, "get_expanded_tied_weights_keys")]
    for name, part in parts:
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            declared = getattr(part, attribute, None)
            found[name, attribute] = (attribute in vars(part), declared if declared is None else dict(declared))
    return found
