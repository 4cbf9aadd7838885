"""cmgems/pretrain.py with a recording around it, and with faults on demand:

    TRACE=FOLDER [FAULT="kill 0.1 s after step 7"] accelerate launch ... tests/training/driver.py --config RECIPE ...

Each rank appends one JSON line an optimizer step to FOLDER/rank-R.jsonl; its exit code is in FOLDER/rank-R.exit. A line
holds what happened on this rank in the step, taken where it happened:

    step            counted from 1
    stage           name of the stage that the controller was in
    strategies      names of the masking strategies that ran
    micro_batches   for each the real rows, in their order: [epoch, sample id, digest of the masked row]
    loss, norm      sum over the rank's masked tokens, and the gradient's norm, as float.hex
    masked_tokens   number of the rank's masked tokens

With ALLOCATED set, FOLDER/rank-R.allocated has a line "step,MiB" for each step: see `record_allocated`.

Before the first step it writes the time-outs of all groups of processes, in seconds, to FOLDER/rank-R.timeouts.

The faults are in FAULTS below. A "kill" ends all processes of the launch, its launcher included, by SIGKILL; the fault
that did it is in FOLDER/killed.
"""

import ctypes
import errno
import functools
import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import psutil
import torch
from torch import distributed

from cmgems.config.command_line import load_config
from cmgems.curriculum.controller import Controller
from cmgems.masking import strategies
from cmgems.masking.masker import Masker
from cmgems.pretrain import pretrain
from cmgems.runtime import files, process
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.signals import stopping_on_signals
from cmgems.training import checkpoint, engine
from cmgems.training.metrics import LogWindow
from cmgems.training.trainer import Trainer

RANK = int(os.environ.get("RANK", "0"))
TRACE = Path(os.environ["TRACE"])
FAULT = os.environ.get("FAULT", "")


def wrap(owner, name, before=None, after=None):
    """Have a function of a module, or a method of a class, call `before` with its arguments, `after` with its result
    in front of them."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments, **options):
        if before:
            before(*arguments)
        result = original(*arguments, **options)
        if after:
            after(result, *arguments)
        return result

    setattr(owner, name, wrapped)


def record_steps():
    """Write a line after each optimizer step."""
    file = (TRACE / f"rank-{RANK}.jsonl").open("a")
    line = {}

    def begin(trainer, *_):
        # What validation masks between two steps goes away here.
        line.update(micro_batches=[], strategies=set())

    def note_strategy(name):
        line.setdefault("strategies", set()).add(name)

    def note_rows(masked, _masker, _ids, epoch, sample_id, _masking):
        rows = zip(epoch.tolist(), sample_id.tolist(), digests(masked), strict=True)
        line.setdefault("micro_batches", []).append([row for row in rows if row[1] >= 0])

    def note_loss(_window, statistics, loss, norm, *_):
        line.update(loss=float(loss).hex(), norm=float(norm).hex(), masked_tokens=int(statistics[0]))

    def end(_stop, trainer, *_):
        line.update(step=trainer.progress.step, stage=trainer.controller.stage.name)
        file.write(json.dumps({**line, "strategies": sorted(line["strategies"])}) + "\n")
        file.flush()

    for name, strategy in strategies.STRATEGIES.items():
        wrap(strategy, "select", before=lambda *_, name=name: note_strategy(name))
    wrap(Masker, "__call__", after=note_rows)
    wrap(LogWindow, "add", before=note_loss)
    wrap(Trainer, "_train_step", before=begin, after=end)


def record_allocated():
    """Write, for each step, how many MiB the memory allocator (glibc's) has given out: what it keeps beyond that, in
    pieces that nothing fits, is no leak."""
    file = (TRACE / f"rank-{RANK}.allocated").open("w", buffering=1)
    fields = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    information = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = information

    def end(_stop, trainer, *_):
        found = mallinfo2()
        file.write(f"{trainer.progress.step},{(found.uordblks + found.hblkhd) / 2**20:.3f}\n")

    wrap(Trainer, "_train_step", after=end)


def record_timeouts(*_):
    """Write how long each group of processes waits for one that does not answer."""
    groups = list(distributed.distributed_c10d._world.pg_map) if distributed.is_initialized() else []
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    seconds = [backend.options._timeout.total_seconds() for backend in backends]
    (TRACE / f"rank-{RANK}.timeouts").write_text(json.dumps(seconds))


def digests(masked):
    """Digest of each row's masked input, mask and labels; of its valid tokens only, so that padding has no say."""
    for ids, chosen, labels, valid in zip(
        masked.input_ids.cpu(), masked.masked.cpu(), masked.labels.cpu(), masked.attention_mask.cpu(), strict=True
    ):
        parts = (row[valid].numpy().tobytes() for row in (ids, chosen, labels))
        yield blake2b(b"".join(parts), digest_size=8).hexdigest()


def kill_after_step(seconds, step):
    """Kill at a moment after a step, or after the first one of this launch if that is later."""
    timer = threading.Timer(float(seconds), kill_launch)
    timer.daemon = True

    def start_timer(_stop, trainer, *_):
        if trainer.progress.step >= int(step) and not timer.is_alive():
            timer.start()

    if RANK == 0:
        wrap(Trainer, "_train_step", after=start_timer)


def kill_in_own_step(number):
    """Kill in the N-th step of this launch, when its windows are masked."""
    first = []

    def is_the_one(trainer, step, _micro_step):
        first[:] = first or [step]
        return step == first[0] + int(number) - 1

    if RANK == 0:
        wrap(Trainer, "_seed_dropout", before=kill_if(is_the_one))


def kill_in_switch(moment, number):
    """Kill when rank 0 is about to make the N-th change of stage, when it alone has made it, or when all have."""

    def is_next(controller, index, _step):
        return index != controller.index and len(controller.switches) + 1 == int(number)

    def is_done(switch, controller, *_):
        return switch is not None and len(controller.switches) == int(number)

    def wait_for_the_others(*arguments):
        if is_done(*arguments):
            time.sleep(0.3)  # they do not get far: rank 0 has to take part in what comes next

    if RANK > 0 and moment == "within":
        wrap(Controller, "_enter", before=lambda *arguments: is_next(*arguments) and time.sleep(60))
    elif RANK == 0 and moment == "before":
        wrap(Controller, "_enter", before=kill_if(is_next))
    elif RANK == 0:
        if moment == "after":
            wrap(Controller, "advance", after=wait_for_the_others)
        wrap(Controller, "advance", after=kill_if(is_done))


def kill_in_checkpoint(moment, step):
    """Kill while a checkpoint is written: its state not yet staged (staging), one file of it moved (move), all of it
    there but for its name (rename); or while it is removed again, without one of its files (removal)."""
    folder = checkpoint.step_folder(Path("checkpoints"), int(step))

    def is_staged(path, values):
        return path.name == checkpoint.STATE_FILE and values["progress"]["step"] == int(step)

    def is_moved(path):
        return re.search(rf"{folder.parent}/\.{folder.name}\.\w+\.partial/", str(path))

    def is_renamed(_partial, to):
        return to.parts[-2:] == folder.parts

    def is_removed(path):
        if not str(path).endswith(f"{folder.parent}/.{folder.name}.removed.partial"):
            return False
        (path / checkpoint.STATE_FILE).unlink()
        return True

    owner, name, condition = {
        "staging": (checkpoint, "_write_json", is_staged),
        "move": (checkpoint, "flush_to_disk", is_moved),
        "rename": (checkpoint, "put_in_place", is_renamed),
        "removal": (files.shutil, "rmtree", is_removed),
    }[moment]
    if RANK == 0:
        wrap(owner, name, before=kill_if(condition))


def fail_to_write(rank, what, step):
    """Have one rank fail, or die, when it takes its part of a checkpoint to its place."""

    def fail(_source, target):
        if not target.name.startswith(f".{checkpoint.step_folder(Path(), int(step)).name}."):
            return
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    if int(rank) == RANK:
        wrap(checkpoint, "_move_files", before=fail)


def kill_if(condition):
    """Function that kills the launch when its arguments meet a condition."""
    return lambda *arguments: condition(*arguments) and kill_launch()


def go_astray(rank, stage, step):
    """Have one rank mask a step under a stage of its own."""

    def set_stage(trainer, *_):
        if trainer.progress.step + 1 == int(step):
            trainer.controller.index = int(stage)

    if int(rank) == RANK:
        wrap(Trainer, "_train_step", before=set_stage)


FAULTS = {
    r"kill ([\d.]+) s after step (\d+)": kill_after_step,
    r"kill in step (\d+) of its own": kill_in_own_step,
    r"kill (before|within|after) switch (\d+)": kill_in_switch,
    r"kill in the (staging|move|rename|removal) of checkpoint (\d+)": kill_in_checkpoint,
    r"rank (\d+) (dies|fails) while it writes checkpoint (\d+)": fail_to_write,
    r"rank (\d+) goes to stage (\d+) at step (\d+)": go_astray,
}


def kill_launch():
    """End all processes of this launch at once, as a machine that goes down does."""
    own = psutil.Process()
    launcher = own.parent()
    assert launcher.environ().get("TRACE") == str(TRACE), f"{launcher} has not launched this"
    others = [each for each in launcher.children(recursive=True) if each != own]
    (TRACE / "killed").write_text(FAULT)
    for each in (launcher, *others):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    own.kill()


def main():
    """The run, recorded."""
    config = load_config(sys.argv[1:])
    record_steps()
    if os.environ.get("ALLOCATED"):
        record_allocated()
    wrap(engine, "build_engine", after=record_timeouts)
    # Wrapped around the recording: a fault after a step comes after its line.
    if FAULT:
        [(arguments, fault)] = [(m.groups(), fault) for p, fault in FAULTS.items() if (m := re.fullmatch(p, FAULT))]
        fault(*arguments)
    pretrain(config)


def note_exit(code):
    (TRACE / f"rank-{RANK}.exit").write_text(str(code))


if __name__ == "__main__":
    wrap(process, "end_process", before=note_exit)
    configure_logging()
    with stopping_on_signals(), process.exit_on_error():
        main()
        process.end_process(0)
