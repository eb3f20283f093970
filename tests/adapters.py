"""What the tests of TT-LoRA share: layers to adapt, the dense update as an oracle, tiny models, and what a model is."""

import math

import torch
from hypothesis import strategies as st
from strategies import dense, gaussian
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from ttref import TTLoRALinear
from ttref.surgery.wrappers import put

ORDERS = ["right-to-left", "left-to-right", "two-gemm", "dense"]
WIDE = [torch.float64, torch.float32]
FLOATS = [*WIDE, torch.bfloat16, torch.float16]
# out, in, shape: aligned; with modes of one; straddling by one core and by several; padded; one core; two.
SHAPES = {
    "aligned": (24, 36, (4, 6, 4, 9)),
    "ones": (24, 36, (1, 4, 1, 6, 1, 1, 4, 9, 1)),
    "straddling": (24, 36, (8, 9, 12)),
    "straddling by two": (24, 24, (4, 4, 9, 4)),
    "straddling by all": (15, 14, (7, 5, 6)),
    "a one inside": (24, 24, (4, 4, 1, 9, 4)),
    "automatic": (24, 36, None),
    "padded": (29, 37, None),
    "rows padded": (13, 16, None),
    "one core": (6, 4, (24,)),
    "a core a side": (6, 4, (6, 4)),
    "one row": (1, 8, None),
    "one column": (8, 1, None),
    "nothing to train": (1, 1, None),
}
STRADDLING = [name for name in SHAPES if name.startswith("straddling") or name in ("a one inside", "one core")]
ALIGNED = [name for name in SHAPES if name not in STRADDLING]


def base_layer(out, ins, *, kind="linear", bias=True, dtype=torch.float32, seed=0):
    """A frozen layer with Gaussian numbers; ``kind`` may be GPT-2's, whose weight is ``(in, out)``."""
    layer = Conv1D(out, ins).to(dtype) if kind == "conv1d" else nn.Linear(ins, out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(gaussian(layer.weight.shape, seed) / ins**0.5)
        if layer.bias is not None:
            layer.bias.copy_(gaussian(layer.bias.shape, seed + 1))
        layer.weight[-1, -1] = -0.0  # what is put back must be this very bit, too
    return layer.requires_grad_(False)


def scatter(layer, seed=0):
    """Gaussian numbers in all cores, so that the update is about as large as the weight."""
    with torch.no_grad():
        for k, core in enumerate(layer.cores):
            core.copy_(gaussian(core.shape, seed + k) / core.shape[0] ** 0.5)
        layer.cores[-1].mul_(layer.in_features**-0.5)
    return layer


def adapted(name="aligned", *, rank=3, alpha=1.5, seed=0, dropout=0.0, **base):
    out, ins, shape = SHAPES[name]
    layer = TTLoRALinear(base_layer(out, ins, seed=seed, **base), rank=rank, alpha=alpha, shape=shape, dropout=dropout)
    return scatter(layer, seed)


def padded_width(width):
    """The next number whose prime factors are all below 12."""
    rest = width
    for prime in (2, 3, 5, 7, 11):
        while rest % prime == 0:
            rest //= prime
    return width if rest == 1 else padded_width(width + 1)


def update_of(layer, cores=None):
    """The oracle: alpha times the train as a matrix (out, in), one einsum per core and no code of ttref's."""
    train = dense(list(layer.cores if cores is None else cores))
    out, ins = layer.out_features, layer.in_features
    rows, columns = (out, ins) if train.numel() == out * ins else (padded_width(out), padded_width(ins))
    return layer.alpha * train.reshape(rows, columns)[:out, :ins]


def weight_of(layer):
    """The frozen weight as (out, in)."""
    weight = layer.base_layer.weight
    return weight if isinstance(layer.base_layer, nn.Linear) else weight.T


def vectors(layer, *batch, seed=9):
    x = gaussian((*batch, layer.in_features), seed, layer.base_layer.weight.dtype)
    # GPT-2's layer wants rows that lie one after the other; where they begin may be anywhere.
    return x if isinstance(layer.base_layer, nn.Linear) else x.contiguous()


@st.composite
def trains(draw):
    """(out, in, shape): modes that part at the boundary, modes that do not, or modes left to choose."""
    small = st.integers(1, 4)
    if draw(st.booleans()):
        rows, columns = (draw(st.lists(small, min_size=1, max_size=3)) for _ in "ab")
        return math.prod(rows), math.prod(columns), (*rows, *columns)
    if draw(st.booleans()):
        return draw(st.integers(1, 40)), draw(st.integers(1, 40)), None
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5).filter(lambda shape: math.prod(shape) <= 1500))
    total = math.prod(shape)
    out = draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    return out, total // out, tuple(shape)


# Models


def tiny_bert(seed=0, dtype=torch.float32, kind=BertModel, **options):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=36,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    return kind(config).to(dtype)


def tiny_classifier(seed=0, dtype=torch.float32):
    return tiny_bert(seed, dtype, BertForSequenceClassification, num_labels=3)


def tiny_llama(seed=0, dtype=torch.float32):
    """Four query heads to two key and value heads, so that the projections differ in width."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_gpt2(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config).to(dtype)


def tokens(*batch, seed=0):
    return torch.randint(50, batch or (3, 7), generator=torch.Generator().manual_seed(seed))


def answers(model, ids=None):
    """What the model makes of some tokens, as one tensor."""
    with torch.no_grad():
        made = model(input_ids=tokens() if ids is None else ids)
    return made.logits if "logits" in made else made.last_hidden_state


def anatomy(model):
    """All that a failed call must leave alone: modules and tensors by identity, their bits, flags and modes."""
    modules = [
        (name, id(module), type(module), module.training, sorted(vars(module)))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors = [(name, id(x), x.data_ptr(), x.dtype, x.requires_grad, bits(x)) for name, x in held]
    return modules, tensors


def bits(x):
    """The tensor's bytes; equal for NaN too."""
    return b"" if x.is_meta else x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def trained(model):
    """Names of the parameters that require a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def scatter_all(model, seed=0):
    for k, module in enumerate(model.modules()):
        if isinstance(module, TTLoRALinear):
            scatter(module, seed + 100 * k)
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def inside(wrap, *names):
    """Only these parts of a model are wrapped."""

    def wrapped(model):
        for name in names:
            put(model, name, wrap(model.get_submodule(name)))
        return model

    return wrapped
