"""The configuration of TT-LoRA through PEFT: which modules are adapted, and what cannot be asked for."""

import pytest
from adapters import anatomy, answers, tiny_bert, tiny_llama
from peft import get_peft_model
from peft_models import base_of, config, layers, made
from strategies import agree

from ttref.lora.peft import TTLoraConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    # PEFT cannot look a model up that has no name on the hub.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]


def test_the_options_reach_every_layer():
    model = get_peft_model(
        tiny_llama(),
        config(
            ["q_proj", "v_proj"],
            rank=[1, 2, 3, 2, 1],
            alpha=-3,
            init="orthogonal",
            dropout=0.25,
            shape={"q_proj": [4, 6, 4, 6], "v_proj": [3, 4, 2, 12]},
        ),
    )
    for name, layer in layers(model).items():
        delta = layer.ttlora_delta["default"]
        assert delta.shape == ((4, 6, 4, 6) if name.endswith("q_proj") else (3, 4, 2, 12))
        assert (delta.ranks, delta.alpha, delta.init, delta.dropout.p) == ((1, 2, 3, 2, 1), -3, "orthogonal", 0.25)
    paper = get_peft_model(tiny_bert(), config(init="paper")).eval()
    assert not agree(answers(paper), answers(base_of()))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"targets": ["query"]}, {"0.attention.self.query", "1.attention.self.query"}),
        ({"targets": r".*layer\.1\.attention\.self\.(query|key)"}, {"1.attention.self.query", "1.attention.self.key"}),
        ({"targets": ["query"], "layers_to_transform": 1}, {"1.attention.self.query"}),
        (
            {"targets": ["query"], "layers_to_transform": [0, 1], "layers_pattern": "layer"},
            {"0.attention.self.query", "1.attention.self.query"},
        ),
        (
            {"targets": ["query", "key"], "exclude_modules": ["key"]},
            {"0.attention.self.query", "1.attention.self.query"},
        ),
        (
            {"targets": ["query"], "exclude_modules": r".*layer\.0\..*"},
            {"1.attention.self.query"},
        ),
        (
            {"targets": "all-linear", "exclude_modules": ["pooler.dense"]},
            {
                f"{k}.{name}"
                for k in (0, 1)
                for name in (
                    *(f"attention.self.{part}" for part in ("query", "key", "value")),
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense",
                )
            },
        ),
    ],
)
def test_which_modules_are_adapted(options, expected):
    model = made(**options)
    assert {name.partition("encoder.layer.")[2] for name in layers(model)} == expected


def test_all_linear_of_a_language_model_leaves_the_head():
    found = {name.rpartition(".")[2] for name in layers(made("llama", targets="all-linear"))}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_names_are_a_set_and_a_pattern_is_a_string():
    """As in PEFT's own configurations, which write sets in order."""
    settings = config(["value", "query"], exclude_modules=["key"])
    assert settings.target_modules == {"value", "query"} and settings.exclude_modules == {"key"}
    assert config(r".*\.query").target_modules == r".*\.query"


def test_bad_configurations():
    for options, error, message in [
        ({"bias": "all"}, ValueError, "bias must be 'none', got 'all'"),
        ({"layers_pattern": "layer"}, ValueError, "give both"),
    ]:
        with pytest.raises(error, match=message):
            config(**options)
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(tiny_bert(), TTLoraConfig(rank=2, alpha=1))
    for options, error, message in [
        ({"targets": ["nothing"]}, ValueError, "not found"),
        ({"shape": {"uery": [4, 6, 4, 6]}}, ValueError, "shape gives modes for 'uery'"),
        ({"targets": ["query", "pooler.activation"]}, TypeError, "^pooler.activation: TT-LoRA adapts"),
        ({"targets": ["word_embeddings"]}, TypeError, "embeddings.word_embeddings: TT-LoRA adapts nn.Linear"),
        ({"shape": [4, 6, 4, 5]}, ValueError, "encoder.layer.0.attention.self.query: shape .* multiplies to 480"),
        ({"rank": 0}, ValueError, "query: rank must be"),
        ({"alpha": 0}, ValueError, "query: alpha"),
        ({"init": "ones"}, ValueError, "query: init must be"),
        ({"dropout": 2}, ValueError, "query: dropout"),
    ]:
        model = tiny_bert()
        before = anatomy(model)
        with pytest.raises(error, match=message):
            get_peft_model(model, config(**{"targets": ["query"], **options}))
        assert anatomy(model) == before


def test_a_second_adapter_that_does_not_fit_leaves_the_first():
    model = made()
    before, own = anatomy(model), answers(model)
    for options, error in [
        ({"targets": ["query", "key", "pooler.activation"]}, TypeError),
        ({"targets": ["query"], "shape": [4, 6, 4, 5]}, ValueError),
        ({"targets": ["key"], "shape": {"query": [4, 6, 4, 6], "uery": [4, 6]}}, ValueError),
    ]:
        with pytest.raises(error):
            model.add_adapter("second", config(**options))
        assert anatomy(model) == before and agree(answers(model), own)
        assert list(model.peft_config) == ["default"]
