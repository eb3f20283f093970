"""Memory of a form in a process of its own, as the system counts it, and the bytes of its file.

``python -m studies.deployment.memory MODEL FORM FOLDER`` is that process; it prints what it found as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ttref.release.accepting.live import Live

from .speeds import ids_of
from .variants import FORMS, folder, load, skeleton

RUNS = {"minilm": ((1, 32), (64, 128)), "smollm2": ((1, 1), (1, 512))}
ROOT = Path(__file__).resolve().parents[2]


def memory(limits: dict[str, float], before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``memory``."""
    for model in RUNS:
        for form in FORMS:
            if (key := f"{model} {form}") not in before:
                yield {"key": key, "model": model, "form": form} | alone(model, form)


def alone(model: str, form: str) -> dict:
    """File and memory of one form; its process does nothing else."""
    made = folder(model, form)
    command = [sys.executable, "-m", f"{__package__}.memory", model, form, str(made)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    file_bytes = (made / "model.safetensors").stat().st_size
    return {"file_bytes": file_bytes} | json.loads(done.stdout.splitlines()[-1])


def inside(model: str, form: str, made: Path) -> dict:
    """Bytes of this process after imports, while and after it loads, at most in each run; and of tensors made in it."""
    skeleton(model, made)  # imports come with it
    found = {"imported": status("VmRSS")}
    net = load(model, form, made)
    found |= {"loading": status("VmHWM"), "loaded": status("VmRSS")}
    tensors, options = [*net.parameters(), *net.buffers()], {"logits_to_keep": 1} if model == "smollm2" else {}
    with torch.no_grad():
        for batch, length in RUNS[model]:
            ids, key = ids_of(net, batch, length), f"{batch} x {length}"
            begin()
            net(ids, **options)
            found[f"running {key}"] = status("VmHWM")
            with Live((ids, *tensors)) as live:
                net(ids, **options)
            found[f"made {key}"] = live.peak
    return found


def begin() -> None:
    """The most that this process held counts from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def status(name: str) -> int:
    """Bytes by the system's account of this process: ``VmRSS`` now, ``VmHWM`` at most (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(inside(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
