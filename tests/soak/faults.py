"""The faults, and what each has to lead to.

A fault is a function of a run and a source of random numbers. It returns one of the outcomes below, after the moment in
which it must have shown; it raises LostError or HangError where that does not come.
"""

import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import psutil

from cmgems.data.corpus import COUNTS
from tests.soak.subject import RECIPE, STEPS, Attempt, HangError, LostError, Run

ENDED, WENT_ON, REFUSED = "ended, resumed", "went on", "refused"
"""The launch ended; it never noticed; it, or another one, was refused before its first step with exit code 2 or 69."""

ERROR = re.compile(r"^error: ", re.MULTILINE)
EVERY = RECIPE["checkpoint"]["every"]


@dataclass
class Tried:
    """What has come of a fault."""

    outcome: str
    seconds: float | None = None
    """From the fault to the end of the launch."""


# ---- moments


def reach_a_moment(run: Run, random: random.Random) -> Attempt:
    """Launch the run if it is not at work, and return at a random moment of it: while it starts, at some step, around
    its switch, while a checkpoint is written, at its last steps."""
    is_new = run.current is None
    attempt = run.running()
    before = max((each.step for each in run.attempts), default=0)
    switch = run.undisturbed.switch
    moments = {"step": 8, "checkpoint": 3}
    if is_new:
        moments["start"] = 3
    if before < switch - 1:
        moments["switch"] = 2
    if before > STEPS // 2:
        moments["end"] = 1
    [moment] = random.choices(list(moments), list(moments.values()))
    if moment == "start":
        sleep_while_alive(attempt, random.uniform(0, 12))
    elif moment == "step":
        attempt.reach(min(before + random.randrange(1, 30), STEPS - 2))
        time.sleep(random.uniform(0, 0.1))
    elif moment == "switch":
        attempt.reach(switch - 1 + random.randrange(3))
    elif moment == "checkpoint":
        attempt.reach(min((before // EVERY + random.randrange(1, 4)) * EVERY, STEPS - EVERY))
        time.sleep(random.uniform(0, 0.05))
    else:
        attempt.reach(STEPS - random.randrange(3))
    return attempt


def sleep_while_alive(attempt, seconds):
    """Sleep, and take note of the processes of a launch meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and attempt.alive:
        attempt.look()
        time.sleep(0.05)


def after(attempt: Attempt, run: Run) -> Tried:
    """Wait until a launch that a fault has hit has ended, and compare what it did."""
    began = time.monotonic()
    code = attempt.wait()
    run.check(attempt)
    if code == 0 and not run.model.exists():
        raise LostError(f"exit code 0 before the end\n{attempt.output[-2000:]}")
    return Tried(ENDED if code else WENT_ON, time.monotonic() - began)


# ---- processes that die, stop, or get signals


def hit(target: Callable[[Attempt, random.Random], object], number: signal.Signals):
    """Fault: a signal to a process, which ends the run."""

    def fault(run, random):
        attempt = reach_a_moment(run, random)
        process = wait_for(lambda: target(attempt, random), attempt)
        if process is None:  # the run has ended first
            return after(attempt, run)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        return after(attempt, run)

    return fault


def wait_for(find, attempt):
    """Return a process as soon as there is one; None if the launch ends first."""
    while attempt.alive:
        if found := find():
            return found
        time.sleep(0.05)
    return None


def any_rank(attempt, random):
    """A rank."""
    return attempt.rank(random.randrange(attempt.processes))


def any_worker(attempt, random):
    """A loader worker."""
    return attempt.worker(random.randrange(2))


def the_launcher(attempt, _random):
    """The launcher."""
    attempt.look()
    return psutil.Process(attempt.launcher.pid)


def kill_everything(run, random):
    """Fault: all processes of the launch are killed at once."""
    attempt = reach_a_moment(run, random)
    attempt.kill()
    return after(attempt, run)


def interrupt_from_the_terminal(run, random):
    """Fault: Ctrl-C, which all processes of the terminal's foreground get."""
    attempt = reach_a_moment(run, random)
    attempt.look()
    with suppress(ProcessLookupError):
        os.killpg(attempt.launcher.pid, signal.SIGINT)
    return after(attempt, run)


def stop_for_a_moment(run, random):
    """Fault: all processes stop for some seconds, as on a machine that is suspended, and continue."""
    attempt = reach_a_moment(run, random)
    attempt.look()
    processes = [psutil.Process(attempt.launcher.pid), *attempt.family] if attempt.alive else []
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        time.sleep(random.uniform(1, 6))
    return goes_on(run, attempt, random)


def goes_on(run, attempt, random):
    """A launch that has to take no notice: it makes some more steps, or ends well."""
    if not attempt.reach(min(max(1, attempt.step) + random.randrange(1, 8), STEPS)):
        code = attempt.wait()
        run.check(attempt)
        if code:
            raise LostError(f"exit code {code}, though it should have gone on\n{attempt.output[-3000:]}")
    return Tried(WENT_ON)


# ---- checkpoints, corpus, settings


def damage_newest(damage: Callable[[Path, random.Random], None], every=False):
    """Fault: files of the newest checkpoint, or one of each, are damaged while the run rests."""

    def fault(run, random):
        run.stop()
        if run.is_complete or not run.checkpoints():
            return None
        backup = run.folder / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(run.folder / "run/checkpoints", backup)
        damaged = run.checkpoints() if every else run.checkpoints()[-1:]
        sound = len(run.checkpoints()) - len(damaged)
        for checkpoint in damaged:
            files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != "manifest.json")
            damage(random.choice(files), random)
        attempt = run.running()
        if sound:
            if not attempt.reach(1):
                raise LostError(f"no resume from the older checkpoint\n{attempt.output[-3000:]}")
            if str(damaged[0]) not in attempt.output:
                raise LostError(f"{damaged[0]} is damaged, and nothing says so\n{attempt.output[-3000:]}")
            return Tried(WENT_ON)
        tried = refused(run, attempt)
        shutil.rmtree(run.folder / "run/checkpoints")
        shutil.copytree(backup, run.folder / "run/checkpoints")
        return tried

    return fault


def cut(path, random):
    """Cut a file short."""
    os.truncate(path, random.randrange(path.stat().st_size) if path.stat().st_size else 0)


def flip(path, random):
    """Change a byte of a file."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def garble(path, random):
    """Replace what is in a file."""
    path.write_bytes(random.randbytes(max(1, path.stat().st_size)))


def lose(path, _random):
    """Remove a file."""
    path.unlink()


def refused(run, attempt, codes=("exitcode: 2 ", "exitcode  : 2 "), before=None):
    """Wait for a launch that has to end before its first step with one message; nothing may have changed."""
    began = time.monotonic()
    attempt.wait()
    if attempt.step or not any(code in attempt.output for code in codes) or len(ERROR.findall(attempt.output)) != 1:
        raise LostError(f"not refused with one message\n{attempt.output[-4000:]}")
    run.check(attempt)
    if before is not None and run.state() != before:
        raise LostError("the checkpoints have changed")
    return Tried(REFUSED, time.monotonic() - began)


def lose_corpus(run, random):
    """Fault: the corpus is not where it was."""
    with resting(run) as before:
        away = run.corpus.with_name("away")
        run.corpus.rename(away)
        tried = refused(run, run.start(), before=before)
        away.rename(run.corpus)
    return tried


def change_corpus(run, random):
    """Fault: a byte of the corpus has changed."""
    with resting(run) as before:
        file = random.choice([*sorted((run.corpus / "train").glob("*.arrow")), run.corpus / COUNTS])
        content = file.read_bytes()
        flip(file, random)
        tried = refused(run, run.start(), before=before)
        file.write_bytes(content)
    return tried


def change_settings(run, random):
    """Fault: a resume with other settings."""
    changed = random.choice([("--training.global_batch", "26"), ("--seed", "5"), ("--model.layers", "3")])
    with resting(run) as before:
        if not before:  # without a checkpoint it would be a new run
            return None
        return refused(run, run.start(*changed), before=before)


@contextmanager
def resting(run):
    """The run is not at work while this lasts; gives the state of its checkpoints."""
    run.stop()
    yield run.state()


def resume_twice(run, random):
    """Fault: two resumes at once: one is refused, the other one trains."""
    run.stop()
    first, second = run.start(), run.start()
    end = time.monotonic() + 200  # it waits two minutes for a process that may be about to end
    while first.alive and second.alive:
        first.look(), second.look()
        time.sleep(0.05)
        if time.monotonic() > end:
            raise HangError("two launches are at work in one folder, or wait for each other")
    ended, other = (second, first) if first.alive else (first, second)
    run.attempts.append(other)
    if ended.step and other.step:
        raise LostError("both have trained")
    if "error: " not in ended.output and ended.launcher.returncode != 0:
        raise LostError(f"not refused with one message\n{ended.output[-3000:]}")
    run.check(ended)
    return Tried(REFUSED)


def set_clock_back(run, random):
    """Fault: the clock is behind that of the launch before: all that it has written is dated ahead."""
    run.stop()
    then = time.time() + random.uniform(60, 86_400)
    for path in (*run.folder.rglob("*"), run.folder):
        os.utime(path, (then, then), follow_symlinks=False)
    return goes_on(run, run.running(), random)


def fill_disk(run, random):
    """Fault: no room on the disk of the run."""
    attempt = reach_a_moment(run, random)
    filler = run.folder / "run/filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        return after(attempt, run)
    finally:
        filler.unlink()


def change_processes(run, random):
    """Fault: another number of processes from here on."""
    run.stop()
    if run.is_complete:
        return None
    run.processes = random.choice([n for n in (1, 2, 3) if n != run.processes])
    return goes_on(run, run.running(), random)


# ---- MLflow


def kill_server(run, random, server):
    """Fault: the tracking server is killed, and started again later."""
    attempt = reach_a_moment(run, random)
    server.kill()
    try:
        return goes_on_or_does_not_begin(run, attempt, random)
    finally:
        server.start()


def goes_on_or_does_not_begin(run, attempt, random):
    """As `goes_on`; a run that is new needs the server, without which it is refused."""
    is_new = run.mlflow_run() is None
    try:
        return goes_on(run, attempt, random)
    except LostError:
        if not (is_new and attempt.step == 0 and "error: tracking.uri http" in attempt.output):
            raise
        return Tried(REFUSED)


def suspend_server(run, random, server):
    """Fault: the tracking server takes long to answer."""
    attempt = reach_a_moment(run, random)
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        return goes_on_or_does_not_begin(run, attempt, random)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


def answer_with(status, body):
    """Fault: something else answers in place of the tracking server."""

    class Answer(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            """Keep quiet."""

    def fault(run, random, server):
        attempt = reach_a_moment(run, random)
        server.kill()
        other = _serve(server.port, Answer)
        try:
            return goes_on_or_does_not_begin(run, attempt, random)
        finally:
            other.shutdown()
            other.server_close()
            server.start()

    return fault


def _serve(port, handler):
    """Serve HTTP in a thread, on a port that may be taken for another moment."""
    end = time.monotonic() + 60
    while True:
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return server


def delete_run(run, random, server):
    """Fault: the run is deleted in MLflow, and restored by hand later."""
    attempt = reach_a_moment(run, random)
    run_id = run.mlflow_run()
    if run_id is None:
        return None
    client = mlflow.MlflowClient(server.uri)
    client.delete_run(run_id)
    try:
        return goes_on(run, attempt, random)
    finally:
        client.restore_run(run_id)


KILL, TERM, USR1, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGSTOP

FAULTS = {
    "kill -9 of a rank": hit(any_rank, KILL),
    "kill -9 of a loader worker": hit(any_worker, KILL),
    "kill -9 of the launcher": hit(the_launcher, KILL),
    "kill -9 of all processes": kill_everything,
    "SIGTERM to a rank": hit(any_rank, TERM),
    "SIGTERM to the launcher": hit(the_launcher, TERM),
    "SIGUSR1 to a rank": hit(any_rank, USR1),
    "SIGINT to a rank": hit(any_rank, signal.SIGINT),
    "Ctrl-C": interrupt_from_the_terminal,
    "SIGSTOP to a rank": hit(any_rank, STOP),
    "SIGSTOP to a loader worker": hit(any_worker, STOP),
    "all processes stopped for seconds": stop_for_a_moment,
    "newest checkpoint: a file cut": damage_newest(cut),
    "newest checkpoint: a byte changed": damage_newest(flip),
    "newest checkpoint: a file of noise": damage_newest(garble),
    "newest checkpoint: a file lost": damage_newest(lose),
    "all checkpoints damaged": damage_newest(flip, every=True),
    "corpus lost": lose_corpus,
    "corpus changed": change_corpus,
    "settings changed": change_settings,
    "two resumes at once": resume_twice,
    "clock set back": set_clock_back,
    "disk full": fill_disk,
}
ELASTIC_FAULTS = {
    "other number of processes": change_processes,
    **{name: FAULTS[name] for name in ("kill -9 of a rank", "kill -9 of all processes", "SIGTERM to the launcher")},
}
"""Faults of a run whose number of processes changes."""

SERVER_FAULTS = {
    "MLflow killed": kill_server,
    "MLflow slow": suspend_server,
    "MLflow answers 500": answer_with(500, b"{}"),
    "MLflow answers garbage": answer_with(200, b"<html>\xff\x00 no JSON"),
    "MLflow's run deleted": delete_run,
}
"""Faults of the tracking server, which they get as a third argument."""

SELDOM = {"SIGSTOP to a rank", "SIGSTOP to a loader worker", "two resumes at once"}
"""Faults that take a minute each."""
