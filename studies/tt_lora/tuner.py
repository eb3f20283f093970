"""Ray Tune for the book's studies: seeded trials, ASHA, quiet, and resumable after a kill.

By default trials run on this machine, one on each CPU. With ``RAY_ADDRESS`` set they run on that cluster, which gets
the book's packages from here; Python's packages must be installed on it, ``TTREF_CACHE`` must be a folder shared by all
its machines, and if it requires a token, ``RAY_AUTH_MODE=token`` must be set here too.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from book.workbook.console import progress
from ttref import scale

ROOT = Path(__file__).resolve().parents[2]
METRIC = "validation_accuracy"
KEPT = "kept.zip"
# The scheduler's processes find these packages here; a cluster gets them from here.
cluster = functools.partial(scale.cluster, packages=[ROOT / name for name in ("benchmarks", "book", "studies")])


class Watch(tune.Callback):
    """Moves the bar, and saves what Ray does not: the scheduler's rungs, and a complete copy of the search's state."""

    def __init__(self, scheduler: ASHAScheduler, folder: Path, description: str) -> None:
        self.scheduler, self.folder, self.description = scheduler, folder, description

    def setup(self, total_num_samples: int, **info) -> None:
        """Show an empty bar."""
        self.bar, self.ended = progress(total=total_num_samples, description=self.description), 0

    def on_step_end(self, iteration: int, trials: list, **info) -> None:
        """Count the trials that ended, and copy the state after each."""
        ended = sum(trial.is_finished() for trial in trials)
        if ended > self.ended:
            self.bar.update(ended - self.ended)
            self.ended = ended
            keep_copy(self.folder)

    def on_experiment_end(self, trials: list, **info) -> None:
        """Remove the bar."""
        self.bar.close()

    def get_state(self) -> dict:
        """The state of ASHA. Ray itself restores the scheduler as it was before the first trial."""
        return {"scheduler": dict(vars(self.scheduler))}

    def set_state(self, state: dict) -> None:
        """Restore the state of ASHA."""
        vars(self.scheduler).update(state["scheduler"])

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "bar"}


def trials(
    train: Callable[[dict, Callable[[dict], None]], None],
    space: dict,
    folder: Path,
    *,
    cpus: int,
    samples: int,
    epochs: int,
    grace: int = 1,
    seed: int = 0,
    description: str = "trials",
) -> list[dict]:
    """Train with configurations drawn from ``space``; needs ``cluster()`` around it.

    Args:
        train: ``train(config, report)`` trains once and calls ``report`` after every epoch with a dict that holds at
            least ``validation_accuracy``. It runs in other processes, so it must carry its data or load it there.
        space: a search space of Ray Tune.
        folder: folder of the search's state. A search that was killed continues from its state there: trials that
            ended are kept, the others and those that failed start again.
        cpus: trials at a time.
        samples: number of configurations; with a ``grid_search`` in the space, of repetitions of the grid.
        epochs: most epochs of a trial. ASHA stops the worse half after ``grace`` epochs, 2 · ``grace`` and so on.
        grace: epochs that every trial gets.
        seed: of the draw of configurations. With several trials at a time, the order in which they end also decides
            which ones ASHA stops.
        description: text in front of the bar.

    Returns:
        A dict for each trial, in the order in which they were drawn: ``number``, ``config``, ``reports`` (one an
        epoch), ``error`` (None, or the reason of its failure).

    Raises:
        PermissionError: another user could have put a state into ``folder``.
        RuntimeError: every trial failed.
    """
    check_own(folder)

    def trainable(config: dict) -> None:
        reports = []

        def report(values: dict) -> None:
            odd = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
            if odd:
                raise FloatingPointError(f"{odd[0]} is {values[odd[0]]} after epoch {len(reports) + 1}")
            reports.append(values)
            tune.report({METRIC: values[METRIC], "reports": reports})

        train(config, report)

    placed = tune.with_resources(trainable, {"cpu": 1})
    tuner = restored(folder, placed)
    if tuner is None:
        shutil.rmtree(folder, ignore_errors=True)
        asha = ASHAScheduler(max_t=epochs, grace_period=grace, reduction_factor=2)
        tuner = tune.Tuner(
            placed,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=samples,
                scheduler=asha,
                # The limit also keeps the trials in order: Ray runs those that wait in any.
                search_alg=BasicVariantGenerator(random_state=seed, max_concurrent=cpus),
                reuse_actors=True,  # a process that has loaded the data goes on to the next trial
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                callbacks=[Watch(asha, folder, description)],
                verbose=0,
            ),
        )
    found = sorted((as_row(result) for result in tuner.fit()), key=lambda row: row["number"])
    if all(row["error"] for row in found):
        raise RuntimeError(f"all trials failed ({len(found)}); the first, {found[0]['config']}: {found[0]['error']}")
    return found


def check_own(folder: Path) -> None:
    """Refuse a folder that other users may write to: Ray's files are pickles, and reading one can run any code."""
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are his own
        return
    for path in [folder, *folder.rglob("*")] if os.path.lexists(folder) else []:
        about = path.lstat()
        if about.st_uid != os.geteuid() or about.st_mode & stat.S_IWOTH or path.is_symlink():
            raise PermissionError(
                f"{path} belongs to another user, is a link, or may be written by everybody, and a search runs what "
                "it finds there; remove it, or set TTREF_CACHE to a folder of your own"
            )


def restored(folder: Path, trainable: Callable[[dict], None]) -> tune.Tuner | None:
    """The search saved in this folder, or None if it must start again; a printed line reports an unusable state."""
    try:
        if resumable(folder):
            return tune.Tuner.restore(str(folder), trainable=trainable, resume_errored=True)
        reason = "its state is damaged"
    except Exception as error:  # Ray's files can be damaged in as many ways as pickles can
        reason = f"its state cannot be read ({type(error).__name__}: {error})"
    if folder.is_dir() and files(folder):
        print(f"the search in {folder} starts anew: {reason}", flush=True)
    return None


def as_row(result: tune.Result) -> dict:
    """A trial as a dict; of an error, the first line without the traceback.

    Its number stands in its folder's name, ``3f0c1_00004``. A trial that starts again where a kill left such a folder
    gets one with four more digits of chance, ``3f0c1_00004_3a51``.
    """
    error = result.error.cause if isinstance(result.error, RayTaskError) else result.error
    return {
        "number": int(Path(result.path).name.split("_")[1]),
        "config": result.config,
        "reports": (result.metrics or {}).get("reports", []),
        "error": error and f"{type(error).__name__}: {error}".splitlines()[0],
    }


def resumable(folder: Path) -> bool:
    """True if a search can continue from here; a file that a kill has truncated is replaced by its copy."""
    if not whole(state(folder)) and (folder / KEPT).is_file():
        try:
            with zipfile.ZipFile(folder / KEPT) as kept:
                contents = {name: kept.read(name) for name in kept.namelist()}
        except (OSError, zipfile.BadZipFile, zlib.error):
            return False
        if whole(contents):
            for path in files(folder):
                path.unlink()
            for name, content in contents.items():
                (folder / name).write_bytes(content)
    return whole(state(folder))


def keep_copy(folder: Path) -> None:
    """Copy the state, if it is complete: Ray rewrites these files in place, and a kill may truncate them."""
    found = state(folder)
    if whole(found):
        fresh = folder / f"{KEPT}.new"
        with zipfile.ZipFile(fresh, "w") as copy:
            for name, content in found.items():
                copy.writestr(name, content)
        os.replace(fresh, folder / KEPT)


def files(folder: Path) -> list[Path]:
    """Ray's files of the whole search."""
    return [path for path in folder.glob("*") if path.suffix in (".json", ".pkl")]


def state(folder: Path) -> dict[str, bytes]:
    """The content of Ray's files of the search's state."""
    return {path.name: path.read_bytes() for path in files(folder)}


def whole(found: dict[str, bytes]) -> bool:
    """True if no file is missing and each can be read to its end."""
    if not any(name.startswith("experiment_state") for name in found) or "tuner.pkl" not in found:
        return False
    try:
        for name, content in found.items():
            # The searcher's file is a pickle despite its name.
            json.loads(content) if name.startswith("experiment_state") else cloudpickle.loads(content)
    except Exception:  # a damaged pickle can raise anything
        return False
    return True
