"""The loop: epochs of steps, a validation after each, states to resume from, the best weights kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import require
from gamma_runtime.errors import InputError, OutputError, UsageError
from gamma_runtime.files import LOCK, duplicate, lock_file, sweep_temporaries
from gamma_runtime.steps import Steps
from gamma_runtime.threads import OPENCV
from gamma_training.train.config import TrainConfig
from gamma_training.train.distributed import Group, process_group
from gamma_training.train.report import TrainReport, write_report
from gamma_training.train.state import Progress, load_state, save_state
from gamma_training.train.texts import texts_of, tokenize_scenes

if TYPE_CHECKING:
    import torch

    from gamma_training.checkpoint import Checkpoint
    from gamma_training.train.cache import Cache

__all__ = ["BEST", "LAST", "STATE", "TrainReport", "train"]

_LOCK_TIMEOUT = 2.0  # seconds: a killed run's lock ends with its last process
BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.safetensors"


def train(config: TrainConfig, *, resume: bool = False, steps: Steps | None = None) -> TrainReport | None:
    """Train by the configuration; under torchrun every process calls it, and only the first one gets a report.

    Args:
        config: see `TrainConfig`.
        resume: go on from the folder's state file, if there is one.
        steps: progress; silent when None.

    Raises:
        GammaError: of any class; what was trained until the last saved state can be resumed.

    Example:
        >>> report = train(read_config(Path("mine.yaml")))
        >>> report.validation["mean"]["srcc"]
        0.81
    """
    torch = require("torch", "train")
    state = config.out / STATE
    if state.is_file() and not resume:
        raise UsageError(f"{config.out}: a run lies there", hint="--resume goes on with it; or another out")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{config.out}: cannot be made ({error.strerror})") from error
    before = torch.get_num_threads()
    with process_group(config.device) as group, contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(config.threads or before)
        OPENCV.hold()  # photos are spread over threads, not stripes of one photo
        stack.callback(OPENCV.release)
        if group.leads:
            stack.enter_context(_alone(config.out))
        run = _Run(config, group, steps or Steps() if group.leads else Steps())
        stack.callback(run.board.close)  # after an error too: the curve up to it is what one looks at then
        if state.is_file():
            run.resume()
        run.agree()
        run.epochs()
        if group.leads:
            return run.report()
        run.judge_test()
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only run in a folder, rid of what killed ones left half-written.

    Raises:
        OutputError: another run holds the folder.
    """
    with lock_file(folder / LOCK, _LOCK_TIMEOUT, f"{folder}: another run is going on there", "wait, or another out"):
        sweep_temporaries(folder, age=0)
        yield


class _Run:
    """One process of a run."""

    def __init__(self, config: TrainConfig, group: Group, steps: Steps) -> None:
        from gamma_training.checkpoint import build_model, read_checkpoint
        from gamma_training.train.logs import Board
        from gamma_training.train.objective import Objective
        from gamma_training.train.photos import open_photos
        from gamma_training.train.setup import Average, blocks_of, make_optimizer, mark_trained, scaler_for
        from gamma_training.train.validate import doubt_of

        if config.batch % (group.size * config.accumulate):
            raise UsageError(
                f"batch: {config.batch} cannot be shared by {group.size} processes in {config.accumulate} parts each"
            )
        if config.loss == "mse+rank" and config.batch == group.size * config.accumulate:
            raise UsageError("loss: mse+rank, and a process's part of a step is one photo", hint="a larger batch")
        self.config, self.group, self.steps = config, group, steps
        with steps.step("checkpoint"):
            self.source: Checkpoint = read_checkpoint(config.base, prompts=config.prompts, licence=config.licence)
            self.model = build_model(self.source).to(group.device)
        for assumed in self.source.doubts:
            steps.say(assumed)
        self.photos = open_photos(config, self.source.prompts, steps)
        if doubt := doubt_of(config, self.photos):
            steps.say(doubt)
        fresh = self.source.fresh
        self.blocks = blocks_of(config, self.model, fresh)
        self.weights = mark_trained(config, self.model, self.blocks, fresh)
        self.optimizer = make_optimizer(config, self.weights, fresh)
        self.scaler = scaler_for(config, group)
        self.average = Average(self.weights, config.ema) if config.ema else None
        self.cache: Cache | None = None
        self.objective: torch.nn.Module = Objective(self.model, self.blocks)
        if group.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            self.objective = DistributedDataParallel(self.objective)
        self.progress = Progress()
        self._since = time.monotonic()  # what the progress does not count yet
        self.board = Board(config.out) if group.leads else Board(None)
        self._prompts = tokenize_scenes(self.photos.scenes.values(), self.model.dims)
        photos = self.photos.digest
        self._keys = {"config": config.digest, "set of photos and scenes": photos, "base": self.source.sha256}

    # State.

    def resume(self) -> None:
        """Go on where the state file says."""
        values = self.average.values if self.average else None
        path = self.config.out / STATE
        self.progress = load_state(path, self._keys, self.weights, self.optimizer, values, self.scaler)
        self.steps.say(f"resumed after epoch {self.progress.epoch}, step {self.progress.step}")

    def agree(self) -> None:
        """Every process stands where the others do.

        Raises:
            InputError: they do not: only some of them see the state file, or they see different ones.
        """
        places = self.group.gather((self.progress.epoch, self.progress.step))
        if len(set(places)) > 1:
            said = ", ".join(f"{rank}: {epoch} epochs and {step} steps" for rank, (epoch, step) in enumerate(places))
            raise InputError(
                f"{self.config.out}: the processes would go on from different places ({said})",
                hint="out is one folder that every process sees",
            )

    def save(self) -> None:
        """Replace the state file."""
        now = time.monotonic()
        self.progress.seconds, self._since = self.progress.seconds + now - self._since, now
        if self.group.leads:
            values = self.average.values if self.average else None
            path = self.config.out / STATE
            save_state(path, self._keys, self.progress, self.weights, self.optimizer, values, self.scaler)

    def _write_last(self) -> None:
        """A checkpoint that gamma-export takes as it is."""
        from gamma_training.checkpoint import write_safetensors

        write_safetensors(
            self.config.out / LAST,
            self.model.state_dict(),
            dims=self.model.dims,
            prompts=self.source.prompts,
            label=self.config.label,
            licence=self.source.licence,
            fresh=self.source.fresh - set(self.weights),
        )

    # Epochs.

    def epochs(self) -> None:
        """What is left of the run."""
        progress, config = self.progress, self.config
        if not progress.finished:
            self._begin()
        self._since = time.monotonic()
        while not progress.finished:
            self._epoch()
            number = progress.epoch + 1
            row: dict[str, Any] = {"epoch": number, "loss": _mean(progress.losses[-self.steps_an_epoch :])}
            if self.photos.val and (number % config.validate_every == 0 or number == config.epochs):
                self.save()  # a validation that is cut short costs no step
                row |= {"validation": self._judge(self.photos.val)}
            progress.epoch, progress.step = number, 0
            self._keep(row)
            out_of_patience = config.patience is not None and progress.since_best >= config.patience
            progress.finished = progress.epoch >= config.epochs or out_of_patience
            self.save()

    def _begin(self) -> None:
        """A new run looks at its photos first; a resumed one did."""
        from gamma_training.train.cache import folder_of, open_cache
        from gamma_training.train.unusable import refuse_unusable

        config, photos = self.config, self.photos
        if not self.progress.losses:
            refuse_unusable(photos, self.group, config.workers, self.steps)
        if config.cache is None:
            return
        with folder_of(config, self.group) as folder:
            self.cache = open_cache(
                folder,
                config.cache,
                self.model,
                self.blocks,
                photos.train,
                photos.short_side,
                seed=config.seed,
                workers=config.workers,
                group=self.group,
                steps=self.steps,
            )

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches of the training photos."""
        return len(self.photos.train) // self.config.batch

    def _epoch(self) -> None:
        from gamma_training.train.photos import batches
        from gamma_training.train.setup import rate
        from gamma_training.train.views import epoch_order, repeats_of, steps_of

        config, group, progress = self.config, self.group, self.progress
        order = epoch_order(self.photos.train, config.balance, config.seed, progress.epoch)
        all_steps = steps_of(np.stack([order, repeats_of(order)], axis=1), config.batch)
        mine = [step[group.rank :: group.size] for step in all_steps[progress.step :]]
        self.model.train()
        what = f"epoch {progress.epoch + 1} of {config.epochs}"
        with (
            self.steps.step(what, len(mine)) as tick,
            contextlib.closing(
                batches(self.photos, self.cache, mine, config, progress.epoch)  # type: ignore[type-var]
            ) as made,
        ):
            for indices, inputs in made:
                factor = rate(config, progress.epoch, progress.step, len(all_steps))
                for part in self.optimizer.param_groups:
                    part["lr"] = part["base"] * factor
                loss = group.mean(self._step(indices, inputs))
                progress.step += 1
                progress.losses.append(loss)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss is {loss} at step {len(progress.losses)}", hint="a lower lr, clip, or amp: off"
                    )
                self.board.scalar("loss", loss, len(progress.losses))
                if progress.step % config.save_every == 0 and progress.step < len(all_steps):
                    self.save()
                tick(1)

    def _step(self, indices: NDArray[np.int64], inputs: NDArray[Any]) -> float:
        """One step of the optimiser; the mean loss of this process's photos."""
        import torch

        from gamma_training.train.objective import loss_of

        config, device = self.config, self.group.device
        samples = [self.photos.train[index] for index in indices]
        parts = np.array_split(np.arange(len(samples)), config.accumulate)
        total = 0.0
        for number, part in enumerate(parts):
            chosen = [samples[i] for i in part]
            columns, tokens = (t.to(device) for t in texts_of(self._prompts, [sample.scene for sample in chosen]))
            targets = torch.tensor([sample.target for sample in chosen], dtype=torch.float32, device=device)
            values = torch.from_numpy(inputs[part]).to(device)
            values = values if values.dtype == torch.uint8 else values.float()
            with self._syncing(number == len(parts) - 1):
                with self._autocast():
                    scores = self.objective(values, columns, tokens)
                weight = config.rank_weight if config.loss == "mse+rank" else 0.0
                loss = loss_of(scores, targets, [sample.dataset for sample in chosen], weight)
                self.scaler.scale(loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / len(parts)
        if config.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights.values(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(len(self.progress.losses) + 1)
        return total

    def _autocast(self) -> torch.autocast:
        import torch

        dtype = torch.float16 if self.config.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.group.device.type, dtype, enabled=self.config.amp != "off")

    def _syncing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged with a step's last part."""
        if self.group.size == 1 or last:
            return contextlib.nullcontext()
        made: contextlib.AbstractContextManager[Any] = self.objective.no_sync()  # type: ignore[operator]
        return made

    # Judging.

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        """The model as it is kept: in eval mode, with averaged weights where there are some."""
        self.model.eval()
        with self.average.in_place() if self.average else contextlib.nullcontext():
            yield

    def _judge(self, samples: tuple[Any, ...], intervals: bool = False) -> dict[str, Any]:
        from gamma_training.train.validate import score_photos, summary

        with self._judged():
            scores = score_photos(self.model, self.photos, samples, self.group, self.config.workers, self.steps)
        return summary(samples, scores, intervals)

    def _keep(self, row: dict[str, Any]) -> None:
        """History, log, and the checkpoints: the last one always, the best one when this is it."""
        from gamma_training.train.validate import merit

        progress = self.progress
        judged = row.get("validation")
        champion = progress.best["validation"] if progress.best else None
        better = judged is not None and (champion is None or merit(judged) > merit(champion))
        progress.since_best = 0 if better else progress.since_best + (judged is not None)
        if better or (judged is None and not self.photos.val):
            progress.best = row
        progress.history.append(row)
        if not self.group.leads:
            return
        with self._judged():
            self._write_last()
        if progress.best is row:
            for suffix in (".safetensors", ".json"):
                last, best = (self.config.out / Path(name).with_suffix(suffix) for name in (LAST, BEST))
                duplicate(last, best)
        for name, value in (judged or {}).get("mean", {}).items():
            self.board.scalar(f"validation/{name}", value, progress.epoch)
        text = f", validation SRCC {judged['mean']['srcc']:.4f}, RMSE {judged['mean']['rmse']:.4f}" if judged else ""
        self.steps.say(f"epoch {row['epoch']}: loss {row['loss']:.5f}{text}{' (best)' if better else ''}")

    def _load_best(self) -> None:
        from gamma_training.checkpoint import read_checkpoint

        self.group.wait()
        self.model.load_state_dict(read_checkpoint(self.config.out / BEST).state)
        self.average = None

    def judge_test(self) -> dict[str, Any] | None:
        """The best weights on the test photos; None where there are none."""
        self._load_best()
        return self._judge(self.photos.test, intervals=True) if self.photos.test else None

    def report(self) -> TrainReport:
        """Judge the best weights on the test photos, and write the report beside them."""
        test = self.judge_test()
        progress, best = self.progress, self.progress.best or {}
        made = TrainReport(
            best=self.config.out / BEST,
            epochs=progress.epoch,
            steps=len(progress.losses),
            seconds=progress.seconds,
            trained=len(self.weights),
            frozen=len(list(self.model.parameters())) - len(self.weights),
            validation=best.get("validation"),
            test=test,
        )
        write_report(self.config, made, progress, self.model, self.photos)
        return made


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
