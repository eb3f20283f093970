"""TT-LoRA through PEFT on models and parts that ``torch.compile`` or parallel training wraps, as PEFT's own LoRA is."""

import copy
import pickle
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from adapters import anatomy, compiled, inside, scatter, tiny_bert, tiny_gpt2, tokens
from peft import PeftModel, get_peft_model
from strategies import gaussian
from torch import nn
from transformers import BertForMaskedLM

from ttref.lora.peft import TTLoraConfig, TTLoraLayer
from ttref.surgery.wrappers import bare

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]
X = gaussian((4, 16), 1, torch.float32)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


WRAPS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "a part compiled": inside(compiled, "block"),
    "each layer compiled": inside(compiled, "block.q", "v"),
    "layers and all": lambda model: compiled(inside(compiled, "block.q", "v")(model)),
    "a part in parallel": inside(nn.DataParallel, "block"),
}
wraps = pytest.mark.parametrize("wrap", WRAPS)


def make():
    torch.manual_seed(0)
    block = nn.Sequential(OrderedDict(q=nn.Linear(16, 16), act=nn.ReLU()))
    return nn.Sequential(OrderedDict(block=block, v=nn.Linear(16, 16))).eval()


def config(wrap="", **options):
    """PEFT goes by torch's names: of a layer that is compiled itself, the adapter goes inside."""
    targets = r".*\b(q|v)" + r"\._orig_mod" * ("layer" in wrap)
    return TTLoraConfig(**{"rank": 2, "alpha": 2.0, "init": "paper", "target_modules": targets, **options})


def adapted(base, wrap=""):
    model = get_peft_model(base, config(wrap)).eval()
    layers = [module for module in model.modules() if isinstance(module, TTLoraLayer)]
    assert len(layers) == 2
    for seed, layer in enumerate(layers):
        scatter(layer.ttlora_delta["default"], seed)
    return model


@wraps
def test_every_verb(wrap, tmp_path):
    wanted, before = adapted(make())(X), make()(X)
    base = WRAPS[wrap](make())
    base(X)  # what is compiled now must not be answered with later
    model = adapted(base, wrap)
    torch.testing.assert_close(model(X), wanted)
    assert not torch.allclose(before, wanted)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), before)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(WRAPS[wrap](make()), tmp_path).eval()
    torch.testing.assert_close(again(X), wanted)
    merged = again.merge_and_unload()
    assert not any(isinstance(module, TTLoraLayer) for module in merged.modules())
    torch.testing.assert_close(merged(X), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.unload()(X), before)


@wraps
def test_a_layer_that_does_not_fit_leaves_the_model_as_it_was(wrap):
    base = WRAPS[wrap](make())
    before, answers = anatomy(base), base(X)
    with pytest.raises(ValueError, match="shape"):
        get_peft_model(base, config(wrap, shape={"v" + "._orig_mod" * ("layer" in wrap): [2, 3]}))
    assert anatomy(base) == before
    torch.testing.assert_close(base(X), answers)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda model: compiled(nn.DataParallel(model))])
def test_a_tied_head_is_found_through_wrappers(wrap):
    base = wrap(BertForMaskedLM(copy.deepcopy(tiny_bert().config)))
    with pytest.raises(ValueError, match="decoder shares a parameter with bert.embeddings"):
        get_peft_model(base, config(target_modules=["decoder"]))
    assert not any(isinstance(module, TTLoraLayer) for module in bare(base).modules())


def test_blocks_of_a_language_model_that_are_compiled(tmp_path):
    """Compiled block by block, as training scripts do it."""
    base, plain = tiny_gpt2().eval(), tiny_gpt2().eval()
    plain.load_state_dict(base.state_dict())
    blocks = [name for name, _ in base.transformer.h.named_children()]
    wrap = inside(compiled, *(f"transformer.h.{name}" for name in blocks))
    model = get_peft_model(wrap(base), config(target_modules=["c_attn"])).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(wrap(plain), tmp_path).eval()
    torch.testing.assert_close(again(tokens()).logits, model(tokens()).logits)


def test_a_configuration_sent_to_another_process_is_known_to_peft_there(tmp_path):
    (tmp_path / "config").write_bytes(pickle.dumps(config(target_modules=["0"])))
    program = (
        "import pickle, sys; from peft import get_peft_model; from torch import nn\n"
        "made = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print(type(get_peft_model(nn.Sequential(nn.Linear(16, 16)), made).base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "config"], capture_output=True, text=True)
    assert done.stdout == "TTLoraModel\n", done.stderr
