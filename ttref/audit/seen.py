"""What the layers of a checkpoint see of some texts: square roots of their Gram matrices, by the names in the file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..fitting.collecting import collect_gram
from ..linears import conv1d_of
from ..pretrained import model_class
from ..shards import one_line
from .naming import matched
from .reading import Checkpoint, Entry

TEXTS, TOKENS, BATCH = 256, 128, 8  # texts at most, tokens of each at most, texts that run together


def roots_of(checkpoint: Checkpoint, data: str | Path, entries: Iterable[Entry], progress: bool) -> dict[str, Tensor]:
    """Run the model of a checkpoint on texts; the root of each layer's Gram matrix, by the name of its weight.

    Args:
        checkpoint: A folder as Hugging Face has them, or a GGUF file.
        data: A file of texts, one a line; the first 256, and of each the first 128 tokens.
        entries: The weights that are wanted; those of layers that no text reaches, and of tables, have no root.
        progress: Show a bar where somebody may be watching.

    Returns:
        float64 ``(n, n)`` matrices whose square is the Gram matrix. Layers that saw the same inputs share one.

    Raises:
        FileNotFoundError: No such file of texts.
        ModuleNotFoundError: transformers is not installed.
        ValueError: No texts; a checkpoint that transformers cannot run.
    """
    texts = _texts(Path(data).expanduser())
    model, tokenizer = model_of(checkpoint)
    batches = list(_batches(texts, tokenizer))
    called = _called(model, batches[0])
    called = _gguf_names(model, called) if checkpoint.format == "GGUF" else {name: name for name in called}
    known = _layers((entry.name for entry in checkpoint.entries), called)
    layers = {entry.name: known[entry.name] for entry in entries if entry.name in known}
    if not layers:
        raise ValueError(
            f"no layer of {type(model).__name__} that the texts reach has the name of a matrix in the file"
        )
    grams = collect_gram(model, list(layers.values()), batches, progress=progress)
    made: dict[int, Tensor] = {}
    for gram in grams.values():
        if id(gram) not in made:
            made[id(gram)] = _root(gram.matrix)
    return {entry: made[id(grams[layer])] for entry, layer in layers.items()}


def _texts(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of texts {path}")
    try:
        with path.open(encoding="utf-8") as file:
            lines = (line.strip() for line in file)
            texts = [line for line, _ in zip((line for line in lines if line), range(TEXTS), strict=False)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from None
    if not texts:
        raise ValueError(f"{path} holds no text: one a line is expected")
    return texts


def model_of(
    checkpoint: Checkpoint, *, dtype: torch.dtype | str = torch.float32, tokenizer: bool = True
) -> tuple[Any, Any]:
    """The model and its tokenizer, from local files that hold no code; ``"auto"`` keeps the dtype of the file."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "running a model on texts needs transformers; install it with: python -m pip install transformers"
        ) from error
    path, more = checkpoint.path, {}
    if checkpoint.format == "GGUF":
        file = path if path.is_file() else next(path.glob("*.gguf"))
        path, more = file.parent, {"gguf_file": file.name}
    if not path.is_dir():
        raise ValueError(f"{path} is one file; to run it on texts, name the folder with its config.json and tokenizer")
    here = {"local_files_only": True, "trust_remote_code": False, **more}
    try:
        with _quiet(transformers.utils.logging):
            config = transformers.AutoConfig.from_pretrained(path, **here)
            words = transformers.AutoTokenizer.from_pretrained(path, **here) if tokenizer else None
            kind = _class_of(config.architectures)
            safe = {} if more else {"use_safetensors": True}
            model = kind.from_pretrained(path, dtype=dtype, **safe, **here).eval()
    except (MemoryError, ModuleNotFoundError):  # no fault of the checkpoint
        raise
    except Exception as error:  # what a foreign configuration makes transformers raise is of any kind
        line = one_line(error, 200)
        raise ValueError(f"transformers cannot run {checkpoint.path} ({type(error).__name__}: {line})") from None
    return model, words


def _class_of(architectures: Any) -> Any:
    """The class that a configuration names first; AutoModel where it names none."""
    import transformers

    if not architectures:
        return transformers.AutoModel
    kind = model_class(architectures[0] if isinstance(architectures, list) else None)
    if kind is None:
        raise ValueError(f"its architectures are {architectures!r:.80}, the first of which is no model of transformers")
    return kind


@contextmanager
def _quiet(logs: Any) -> Iterator[None]:
    """Neither bars nor advice of transformers on stderr, where one line is to say what went wrong."""
    level = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logs.set_verbosity(level)


def _gguf_names(model: Any, layers: Iterable[str]) -> dict[str, str]:
    """The layers of a model, by their names in a GGUF file."""
    import gguf

    kind = next((arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == model.config.model_type), None)
    if kind is None:
        raise ValueError(
            f"the names of a {model.config.model_type} in GGUF are not known; name a folder of safetensors"
        )
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    return {found: layer for layer in layers if (found := names.get_name(layer))}


def _batches(texts: list[str], tokenizer: Any) -> Iterator[Mapping[str, Tensor]]:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    for start in range(0, len(texts), BATCH):
        made = tokenizer(
            texts[start : start + BATCH], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        yield dict(made)


@torch.no_grad()
def _called(model: nn.Module, batch: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers with a Gram matrix that a batch reaches."""
    found: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: found.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or conv1d_of(module) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(found))


def _layers(entries: Iterable[str], called: Mapping[str, str]) -> dict[str, str]:
    """Layers by the names of their weights in the file, which may lack the name of the whole, or add one."""
    found = matched(entries, (f"{name}.weight" for name in called))
    return {entry: called[weight.removesuffix(".weight")] for entry, weight in found.items()}


def _root(gram: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
