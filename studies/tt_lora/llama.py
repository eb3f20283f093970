"""A smoke run on the LLaMA architecture: TT-LoRA on SmolLM2's q_proj and v_proj for a few steps, then merged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from book.workbook import sources
from ttref import add_tt_lora, merge_tt_lora, save_tt_lora

from ..embeddings import data

TARGETS = ("q_proj", "v_proj")
RANK, ALPHA, LR, STEPS = 4, 2.0, 5e-3, 10
WINDOWS, LENGTH = 8, 64  # trained on, and as many held out


def texts(tokenizer, folder: Path | None) -> tuple[str, Tensor, Tensor]:
    """Windows to train on and windows held out: WikiText-2 where it is present, else scikit-learn's prose."""
    if folder is None:
        windows = sources.token_windows(tokenizer, length=LENGTH, count=2 * WINDOWS)
        return "scikit-learn prose", windows[::2], windows[1::2]
    halves = data.wikitext(folder)
    found = [data.windows(tokenizer, text, count=WINDOWS, length=LENGTH) for text in halves]
    return "WikiText-2 valid, first half trained on, second held out", *map(torch.stack, found)


def train(model: nn.Module, ids: Tensor, steps: int, lr: float = LR) -> tuple[list[float], float]:
    """Adam on all windows at once; the loss before each step in nats per token, and processor seconds of a step."""
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=lr)
    losses, start = [], time.process_time()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 4))
    return losses, (time.process_time() - start) / steps


def tt_lora(lm: sources.LoadedModel, trained: Tensor, held: Tensor, steps: int = STEPS) -> dict:
    """Loss before and after, the adapter's size, and how far the merged model is from the one that is not merged."""
    model = lm.model
    before = {name: sources.language_model_loss(model, ids) for name, ids in (("trained", trained), ("held_out", held))}
    with torch.no_grad():
        untouched = model(held[:1]).logits
    add_tt_lora(model, TARGETS, rank=RANK, alpha=ALPHA)
    with torch.no_grad():
        fresh = model(held[:1]).logits
    params = sum(value.numel() for value in model.parameters() if value.requires_grad)
    losses, seconds = train(model, trained, steps)
    after = {name: sources.language_model_loss(model, ids) for name, ids in (("trained", trained), ("held_out", held))}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_tt_lora(model, Path(folder) / "adapter.safetensors")
        nbytes = (Path(folder) / "adapter.safetensors").stat().st_size
        apart = model(held[:1]).logits
        merged = merge_tt_lora(model)(held[:1]).logits
    return {
        "rank": RANK,
        "alpha": ALPHA,
        "lr": LR,
        "steps": steps,
        "step_losses": losses,
        "loss_before": {name: round(value, 4) for name, value in before.items()},
        "loss_after": {name: round(value, 4) for name, value in after.items()},
        "adapter_params": params,
        "adapter_file_bytes": nbytes,
        "cpu_seconds_per_step": round(seconds, 2),
        "start_is_the_base_model": torch.equal(fresh, untouched),
        "moved_logits_max": round((apart - untouched).abs().max().item(), 4),
        "merged_minus_apart_max": (merged - apart).abs().max().item(),
        "logits_max": round(apart.abs().max().item(), 2),
    }


def llama(folder: Path | None, keep: Callable[[dict], object], recorded: dict) -> dict:
    """TT-LoRA, and LoRA of rank 8 beside it with as many steps."""
    values = recorded.get("llama", {})
    if "lora" in values:
        return {"llama": values}
    lm = sources.load_language_model()
    name, trained, held = texts(lm.tokenizer, folder)
    values = {"model": lm.name, "note": lm.note, "text": name, "windows": WINDOWS, "length": LENGTH}
    values["ttlora"] = tt_lora(lm, trained, held)
    keep({"llama": values})
    lm = sources.load_language_model()
    torch.manual_seed(0)
    model = get_peft_model(lm.model, LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS)))
    losses, seconds = train(model, trained, STEPS, lr=1e-3)
    values["lora"] = {
        "rank": 8,
        "alpha": 2.0,
        "lr": 1e-3,
        "adapter_params": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "step_losses": losses,
        "loss_after": {
            name: round(sources.language_model_loss(model, ids), 4)
            for name, ids in (("trained", trained), ("held_out", held))
        },
        "cpu_seconds_per_step": round(seconds, 2),
    }
    return {"llama": values}
