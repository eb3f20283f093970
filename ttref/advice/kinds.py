"""What a weight is for: from the kind of its module, and from the names that Hugging Face, torchvision and timm use."""

from __future__ import annotations

import re

from torch import nn

TOKENS, POSITIONS, OTHER_TABLE = "token table", "position table", "other table"
QK, VO, FUSED = "attention q, k", "attention v, out", "attention fused"
FORWARD, CONVOLUTION, HEAD, OTHER = "feed-forward", "convolution", "head", "other"
SMALL, INTEGERS, COMPRESSED = "norms, biases, small", "integers already", "compressed already"
KINDS = (TOKENS, POSITIONS, OTHER_TABLE, QK, VO, FUSED, FORWARD, CONVOLUTION, HEAD, OTHER, SMALL, INTEGERS, COMPRESSED)

# Names are read in lower case with a dot for every other character: h.0.attn.c.attn.weight. The first match counts.
_TABLES = (
    (
        POSITIONS,
        r"wpe|pos\.emb\w*|position\.emb\w*|positional\.emb\w*|emb\w*\.pos\w*"
        r"|relative\.attention\.bias|relative\.position\.bias\.table",
    ),
    (OTHER_TABLE, r"token\.type\.emb\w*|segment\.emb\w*"),
    (TOKENS, r"wte|words?\.emb\w*|embed\.tokens|tok\.emb\w*|tokens?\.emb\w*|emb\w*\.tokens?|shared|embed\.in"),
)
_LAYERS = (
    (FUSED, r"c\.attn|w?qkv|qkv\.proj|query\.key\.value|attn\.in\.proj|attention\.in\.proj"),
    (QK, r"(q|k|query|key)(\.proj|\.lin)?(\.weight)?|wq|wk|to\.q|to\.k"),
    (VO, r"(v|value(?!\.head))(\.proj|\.lin)?(\.weight)?|wv|to\.v|o\.proj|out\.lin|to\.out"),
    (VO, r"\w*att\w*\.(out\.proj|output\.dense|c\.proj|proj|dense|wo|o)"),
    (
        FORWARD,
        r"mlp|ffn|feed\.forward|densereludense|experts?|intermediate\.dense|output\.dense|c\.fc|c\.proj|fc1|fc2"
        r"|fc\.in|fc\.out|linear1|linear2|lin1|lin2|gate\.proj|up\.proj|down\.proj|w1|w2|w3|wi|wo|dense\.h\.to\.4h"
        r"|dense\.4h\.to\.h",
    ),
    (HEAD, r"lm\.head|classifier|score|qa\.outputs|heads?|embed\.out|predictions\.decoder|vocab\.projector"),
)
_LAST = re.compile(r"^\.(\w+\.)*?(fc|output)\.(weight|bias|w)\.$")  # torchvision's and LLaMA's own names of the head


def plain(name: str) -> str:
    """The name in dots: ``.h.0.attn.c.attn.weight.`` for ``h.0.attn.c_attn.weight``."""
    return "." + re.sub(r"[^a-z0-9]+", ".", name.lower()).strip(".") + "."


def kind_of(name: str, axes: int, module: nn.Module | None) -> str:
    """The kind of a weight with two or more axes; ``module`` owns it, None for a tensor that only has a name."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return CONVOLUTION
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return _first(_TABLES, name) or (TOKENS if re.search(r"\.emb", plain(name)) else OTHER_TABLE)
    if isinstance(module, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
        return FUSED
    found = None if isinstance(module, nn.Linear) else _first(_TABLES, name)
    if found is None and axes > 2 and not re.search(r"\.experts?\.", plain(name)):
        return CONVOLUTION
    return found or _first(_LAYERS, name) or (HEAD if _LAST.match(plain(name)) else OTHER)


def _first(rules: tuple[tuple[str, str], ...], name: str) -> str | None:
    return next((kind for kind, names in rules if re.search(rf"\.({names})\.", plain(name))), None)
