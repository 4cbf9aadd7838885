"""Checkpoints in one process: complete or absent, checked before they are used, written behind the training's back."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import mlflow
import psutil
import pytest
from filelock import FileLock

from cmgems.config.command_line import load_config
from cmgems.errors import Interrupted, InUseError, UnavailableError, UserError
from cmgems.masking.npmi import npmi_from_counts, write_npmi
from cmgems.runtime import signals
from cmgems.runtime.files import atomic_folder
from cmgems.runtime.process import exit_on_error
from cmgems.training import checkpoint, environment, resume, run_folder, staging
from cmgems.training.checkpoint import RunState, checkpoints, find_corruption
from cmgems.training.staging import StagingFolder
from cmgems.training.trainer import Trainer
from tests.support.machine import require
from tests.training.launching import history_of, newest_run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def spoil(file):
    """Change one byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_newest_checkpoints_and_the_milestones_are_kept(run, tmp_path):
    run("--checkpoint.every", "2", "--checkpoint.milestones", "[3]")
    assert names(tmp_path / "run/checkpoints") == ["step-00000003", "step-00000010", "step-00000012"]
    assert names(tmp_path / "run/models") == ["step-00000003", "step-00000012"]


def test_a_damaged_checkpoint_is_named_and_the_newest_sound_one_used(run, tmp_path, capfd):
    run()
    newest = tmp_path / "run/checkpoints/step-00000012"
    spoil(newest / "weights.pt")
    run("--resume", "auto")
    printed = capfd.readouterr()
    assert f"warning: {newest} is damaged and passed over: weights.pt is not what was written" in printed.err
    assert f"resumed after step 8 from {newest.with_name('step-00000008')}" in printed.out
    assert names(tmp_path / "run/checkpoints") == ["set-aside", "step-00000008", "step-00000012"]
    assert names(tmp_path / "run/checkpoints/set-aside") == ["step-00000012-1"]
    assert find_corruption(newest) is None


def test_a_missing_file_is_damage(run, tmp_path):
    run()
    [*_, newest] = checkpoints(tmp_path / "run/checkpoints")
    (newest / "cmgems.json").unlink()
    assert find_corruption(newest) == "cmgems.json is missing"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(run, tmp_path):
    run()
    for folder in checkpoints(tmp_path / "run/checkpoints"):
        spoil(folder / "weights.pt")
    with pytest.raises(UserError, match=r"no checkpoint of .* is sound"):
        run("--resume", "auto")


def test_a_damaged_checkpoint_that_is_named_is_an_error(run, tmp_path):
    run()
    named = tmp_path / "run/checkpoints/step-00000008"
    spoil(named / "weights.pt")
    with pytest.raises(UserError, match=r"the checkpoint is damaged: weights\.pt is not what was written"):
        run("--resume", str(named))


def test_a_run_goes_on_from_an_older_checkpoint_and_sets_the_newer_aside(run, tmp_path):
    run()
    run("--resume", str(tmp_path / "run/checkpoints/step-00000008"))
    assert names(tmp_path / "run/checkpoints/set-aside") == ["step-00000012-1"]


def test_a_checkpoint_is_refused_where_the_run_has_changed_and_the_message_says_how_to_allow_it(run):
    run()
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: 0\.002 then, 0\.5 now") as refused:
        run("--resume", "auto", "--optimizer.learning_rate", "0.5")
    assert """--allow_changed '["optimizer.learning_rate"]'""" in str(refused.value)


@pytest.mark.parametrize("allowed", ["training.steps", "training"])
def test_a_run_goes_on_with_changes_that_are_allowed(run, tmp_path, allowed):
    first = run()
    longer = run("--resume", "auto", "--training.steps", "16", "--allow_changed", f'["{allowed}"]')
    assert longer.info.run_id == first.info.run_id
    assert longer.data.tags["resumed.12"] == "training.steps: 12 then, 16 now"
    assert max(history_of(longer, "train/loss")) == 16


@pytest.mark.parametrize(("value", "is_change"), [(0, False), (None, False), (0.5, True)])
def test_a_setting_that_a_release_has_removed_is_a_change_only_if_it_was_on(tmp_path, monkeypatch, value, is_change):
    run_state = RunState({"model.layers": 2, "model.removed": value}, 1, 1, None, {}, {})
    monkeypatch.setattr(resume, "read_state", lambda checkpoint: run_state)
    now = {name: then for name, then in run_state.identity.items() if name != "model.removed"}
    if is_change:
        with pytest.raises(UserError, match=r"model\.removed: 0\.5 then, None now"):
            resume._read(tmp_path, now, [])
    else:
        assert resume._read(tmp_path, now, []) == (run_state, [])


def test_only_what_is_named_is_allowed(run):
    run()
    changes = ("--training.steps", "16", "--optimizer.beta1", "0.8")
    with pytest.raises(UserError, match=r"beta1: 0\.9 then, 0\.8 now") as refused:
        run("--resume", "auto", *changes, "--allow_changed", '["training.steps"]')
    assert "training.steps" not in str(refused.value)


def test_a_setting_of_the_optimizer_that_is_changed_on_purpose_takes_effect(run, tmp_path, monkeypatch):
    run()
    betas = []
    step = Trainer._train_step

    def watched(self, *arguments):
        betas.extend(group["betas"] for group in self.optimizer.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", watched)
    changes = ("--training.steps", "13", "--optimizer.beta1", "0.8")
    run("--resume", "auto", *changes, "--allow_changed", '["training", "optimizer"]')
    assert set(betas) == {(0.8, 0.98)}


def test_other_software_is_noted_and_steps_trained_again_with_it_are_logged_again(run, tmp_path, monkeypatch):
    run()
    as_if_killed_after_step_8(tmp_path / "run")
    installed = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: {**installed, "torch": "9.0"})
    again = run("--resume", "auto")
    assert again.data.tags["resumed.8"] == f"torch: {installed['torch']} then, 9.0 now"
    steps = [point.step for point in points(again, "train/loss")]
    assert sorted(steps) == [2, 4, 6, 8, 10, 10, 12, 12]


def test_an_npmi_table_may_be_elsewhere_but_not_another_one(run, tmp_path, tiny_corpus):
    same, moved, other = (tmp_path / f"{name}.csv" for name in ("same", "moved", "other"))
    for path, c in ((same, 101), (moved, 101), (other, 50)):
        write_npmi(npmi_from_counts(tiny_corpus.counts, 4, c=c), path)
    run("--npmi.table", str(same))
    as_if_killed_after_step_8(tmp_path / "run")
    again = run("--resume", "auto", "--npmi.table", str(moved))
    assert len(points(again, "train/loss")) == 6
    with pytest.raises(UserError, match=r"cannot be resumed by this run:\n  npmi: "):
        run("--resume", "auto", "--npmi.table", str(other))


def as_if_killed_after_step_8(folder):
    shutil.rmtree(folder / "checkpoints/step-00000012")


def points(run, metric):
    return mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)


def test_another_architecture_cannot_be_allowed(run):
    run()
    with pytest.raises(UserError, match=r"model\.layers: 2 then, 3 now") as refused:
        run("--resume", "auto", "--model.layers", "3", "--allow_changed", '["model"]')
    assert "--allow_changed" not in str(refused.value)


def test_a_curriculum_that_lacks_the_stage_of_the_checkpoint_is_refused(run):
    run()
    one = '[{"name": "only", "masking": [{"strategy": "span", "rate": 0.15}]}]'
    with pytest.raises(UserError, match="the checkpoint is in stage 1"):
        run("--resume", "auto", "--curriculum.stages", one, "--allow_changed", '["curriculum"]')


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 0)])
def test_a_signal_to_all_processes_gives_a_checkpoint_at_the_end_of_the_step(
    run, tmp_path, monkeypatch, number, workers
):
    undisturbed = logged_losses(run, "--output", str(tmp_path / "undisturbed"))
    with monkeypatch.context() as context:
        context.setattr(Trainer, "_train_step", signalled_in_step(6, number))
        with pytest.raises(Interrupted, match="after step 6"):
            run("--corpus.workers", str(workers), "--corpus.prefetch", "1")
    assert newest_run().info.status == "KILLED"
    assert names(tmp_path / "run/checkpoints") == ["step-00000004", "step-00000006"]
    finished = run("--resume", "auto")
    assert finished.info.status == "FINISHED"
    assert history_of(finished, "train/loss") == undisturbed


def logged_losses(run, *settings):
    return history_of(run(*settings), "train/loss")


def signalled_in_step(number, which):
    step = Trainer._train_step

    def wrapped(self, *arguments):
        if self.progress.step + 1 == number:
            for worker in psutil.Process().children():  # schedulers do not tell them apart
                worker.send_signal(which)
            time.sleep(0.2)
            os.kill(os.getpid(), which)
        return step(self, *arguments)

    return wrapped


@pytest.mark.parametrize(("seconds_to_forget", "message"), [(0, "stopped by SIGTERM"), (60, "after step 6")])
def test_a_second_sigterm_stops_at_once_but_for_the_echo_of_the_first(
    run, tmp_path, monkeypatch, seconds_to_forget, message
):
    monkeypatch.setattr(signals, "ECHO", seconds_to_forget)
    for _ in range(2):
        monkeypatch.setattr(Trainer, "_train_step", signalled_in_step(6, signal.SIGTERM))
    with pytest.raises(Interrupted, match=message):
        run()
    kept = {0: ["step-00000004"], 60: ["step-00000004", "step-00000006"]}
    assert names(tmp_path / "run/checkpoints") == kept[seconds_to_forget]


def test_an_interrupted_program_has_an_exit_code_of_its_own(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise Interrupted("stopped")
    assert ended.value.code == Interrupted.exit_code == 75
    assert capsys.readouterr().err == "stopped\n"


def test_training_goes_on_while_a_checkpoint_is_on_its_way(run, tmp_path, monkeypatch):
    move, step = checkpoint._move_files, Trainer._train_step
    go, steps_meanwhile = threading.Event(), []

    def held_up(*arguments):
        assert go.wait(60)
        return move(*arguments)

    def watched(self, *arguments):
        if self.progress.step >= 4 and not go.is_set():
            steps_meanwhile.append(self.progress.step + 1)
            if self.progress.step == 7:  # the next checkpoint has to wait for this one
                go.set()
        return step(self, *arguments)

    monkeypatch.setattr(checkpoint, "_move_files", held_up)
    monkeypatch.setattr(Trainer, "_train_step", watched)
    run()
    assert steps_meanwhile == [5, 6, 7, 8]
    assert [find_corruption(folder) for folder in checkpoints(tmp_path / "run/checkpoints")] == [None, None]


def test_a_full_disk_is_one_message_and_leaves_the_older_checkpoint(run, tmp_path, monkeypatch):
    move = checkpoint._move_files

    def full(source, target):
        if "00000008" in target.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(checkpoint, "_move_files", full)
    with pytest.raises(UserError, match=r"a checkpoint cannot be written to .*: .*No space left on device"):
        run()
    assert [folder.name for folder in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000004"]


@pytest.fixture
def small_disk(tmp_path):
    """Function that mounts a file system of a size in KB at a folder of tmp_path."""
    require(("mount", "umount"), "apt-get install mount", root=True)
    mounted = []

    def mount(name, kilobytes):
        (tmp_path / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", tmp_path / name], check=True)
        mounted.append(tmp_path / name)
        return mounted[-1]

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("what", ["a checkpoint", "the model"])
def test_a_disk_that_is_full_for_everything_is_one_message(run, small_disk, what):
    disk = small_disk("disk", {"a checkpoint": 600, "the model": 100}[what])
    every = {"a checkpoint": ("--checkpoint.every", "2"), "the model": ("--checkpoint.milestones", "[1]")}[what]
    with pytest.raises(UserError, match=f"{what} cannot be written to {disk}") as ended:
        run("--output", str(disk / "run"), *every)
    assert ended.value.exit_code == 2
    assert newest_run().info.status == "FAILED"
    assert not [*disk.rglob("*.partial")]


def test_a_staging_folder_without_room_is_named(run, small_disk, tmp_path):
    fast = small_disk("fast", 40)
    with pytest.raises(
        UserError, match=f"cannot be written to {fast}, which it passes through: .*\ncheckpoint.staging"
    ):
        run("--checkpoint.staging", str(fast))
    assert names(fast) == []


def test_where_memory_has_no_room_it_says_so(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(staging, "MEMORY", tmp_path / "no memory")
    run()
    assert "/dev/shm lacks room for checkpoints: training waits" in capsys.readouterr().out


def test_what_a_killed_run_has_staged_beside_its_checkpoints_on_another_machine_is_removed(run, tmp_path):
    run()
    left = tmp_path / f"run/checkpoints/cmgems-staging-{os.getuid()}-node2-abc"
    left.mkdir()
    left.with_name(f"{left.name}.lock").touch()
    run("--resume", "auto")
    assert names(tmp_path / "run/checkpoints") == ["step-00000008", "step-00000012"]


@pytest.mark.slow
def test_storage_that_does_not_answer_ends_the_run_and_is_no_mistake(run, tmp_path, monkeypatch):
    move, let_go = checkpoint._move_files, threading.Event()
    monkeypatch.setattr(checkpoint, "_move_files", lambda *arguments: let_go.wait(60) and move(*arguments))
    try:
        with pytest.raises(
            UnavailableError, match=r"a checkpoint cannot be written to .*: the storage does not answer"
        ) as ended:
            run("--launch.timeout", "1")
    finally:
        let_go.set()
    assert ended.value.exit_code == 69


def test_an_error_of_the_storage_that_may_pass_is_no_mistake(run, monkeypatch):
    def fail(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoint, "_move_files", fail)
    with pytest.raises(UnavailableError, match="Stale file handle") as ended:
        run()
    assert ended.value.exit_code == 69


def test_files_are_not_moved_into_a_folder_that_is_gone(tmp_path):
    (tmp_path / "staged/deepspeed").mkdir(parents=True)
    (tmp_path / "staged/deepspeed/weights").touch()
    with pytest.raises(FileNotFoundError):
        checkpoint._move_files(tmp_path / "staged", tmp_path / "gone")
    assert names(tmp_path) == ["staged"]


def test_checkpoints_pass_through_the_folder_that_is_configured_and_leave_nothing_there(run, tmp_path, monkeypatch):
    new, passed = StagingFolder.new, []
    monkeypatch.setattr(StagingFolder, "new", lambda self: passed.append(new(self)) or passed[-1])
    run("--checkpoint.staging", str(tmp_path / "fast"))
    assert len(passed) == 3
    assert all(folder.is_relative_to(tmp_path / "fast") for folder in passed)
    assert names(tmp_path / "fast") == []


def _write_on(folder, opened, go_on, ended):
    """Write a folder by halves, as a process does that outlives the run that has started it."""
    with atomic_folder(folder, replace=True) as partial:
        opened.set()
        go_on.wait(60)
        with suppress(OSError):
            (partial / "orphan").touch()
        ended.set()
        time.sleep(600)


def test_what_an_orphan_still_writes_does_not_get_into_a_folder(tmp_path):
    processes = multiprocessing.get_context("fork")
    opened, go_on, ended = (processes.Event() for _ in range(3))
    orphan = processes.Process(target=_write_on, args=(tmp_path / "folder", opened, go_on, ended), daemon=True)
    orphan.start()
    try:
        assert opened.wait(60)
        with atomic_folder(tmp_path / "folder", replace=True) as partial:
            go_on.set()
            assert ended.wait(60)
            (partial / "file").touch()
    finally:
        orphan.kill()
        orphan.join()
    assert names(tmp_path / "folder") == ["file"]


def test_memory_is_used_where_a_checkpoint_takes_less_than_half_of_what_is_free(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(available=1000))
    monkeypatch.setattr(staging, "MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=100))
    for needed, place in ((49, "memory"), (50, "run")):
        folder = StagingFolder(None, tmp_path / "run", needed)
        assert folder.path.parent == tmp_path / place
        folder.remove()
    assert names(tmp_path / "memory") == names(tmp_path / "run") == []


def test_the_folder_of_a_process_that_was_killed_is_freed_by_the_next_and_that_of_a_living_one_is_not(tmp_path):
    make = "import sys, pathlib, os; from cmgems.training.staging import StagingFolder; "
    make += "folder = StagingFolder(pathlib.Path(sys.argv[1]), None, 0); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", make, str(tmp_path)], check=False, timeout=60)
    [abandoned] = [path for path in tmp_path.iterdir() if path.is_dir()]
    alive = StagingFolder(tmp_path, tmp_path, 0)
    assert not abandoned.exists()
    another = StagingFolder(tmp_path, tmp_path, 0)
    assert alive.path.exists()
    alive.remove()
    another.remove()
    assert names(tmp_path) == []


def test_nobody_else_can_read_what_is_staged(tmp_path):
    before = os.umask(0o000)
    try:
        folder = StagingFolder(tmp_path, tmp_path, 0)
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        folder.remove()
    finally:
        os.umask(before)


def test_what_others_have_put_among_the_staging_folders_is_left_alone(tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "results").mkdir(parents=True)
    left = [tmp_path / f"{staging._PREFIX}{name}" for name in ("link", "folder", "locked")]
    left[0].symlink_to(own)  # would be emptied
    left[1].mkdir()
    left[2].mkdir()
    left[2].with_name(f"{left[2].name}.lock").symlink_to(own / "file")  # would be made
    if os.getuid() == 0:
        os.chown(left[1], 12345, 12345)
    else:
        left.pop(1).rmdir()
    StagingFolder(tmp_path, tmp_path, 0).remove()
    assert names(own) == ["results"]
    assert all(os.path.lexists(path) for path in left)


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.slow
def test_the_umask_decides_who_can_read_a_checkpoint_and_a_model(run, tmp_path, umask):
    before = os.umask(umask)
    try:
        run()
    finally:
        os.umask(before)
    others = {
        path.relative_to(tmp_path / "run").as_posix(): oct(stat.S_IMODE(path.stat().st_mode))
        for path in (tmp_path / "run").rglob("*")
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert others == {}


def test_a_manifest_that_names_files_elsewhere_is_damage(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for name in ("../other", "/dev/zero"):
        (tmp_path / "checkpoint/manifest.json").write_text(json.dumps({name: "0"}))
        assert find_corruption(tmp_path / "checkpoint") == f"{name} is not in its folder"


def test_a_part_that_another_rank_could_not_write_is_named(tmp_path):
    (tmp_path / "rank-00001.json").write_text('{"error": "No space left on device"}')
    with pytest.raises(OSError, match="rank-00001: No space left on device"):
        checkpoint._collect(tmp_path / "rank-00001.json", deadline=time.monotonic() + 60)


def test_a_part_that_does_not_come_is_an_error_at_the_deadline(tmp_path):
    with pytest.raises(OSError, match=r"the part of another rank is not there: rank-00001\.json"):
        checkpoint._collect(tmp_path / "rank-00001.json", deadline=time.monotonic() + 0.1)


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(["--config", str(tiny_recipe)])
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: run_folder._make_folder(config), range(8)))
    assert sorted(folder.name for folder in folders) == [str(number) for number in range(1, 9)]


def test_checkpoints_of_a_run_that_is_going_on_are_not_touched(run, tmp_path, monkeypatch):
    run()
    monkeypatch.setattr(run_folder, "_SECONDS_TO_END", 0.2)
    with FileLock(tmp_path / "run/tracking.lock"), pytest.raises(InUseError, match="is in use"):
        run("--resume", str(tmp_path / "run/checkpoints/step-00000008"))
    assert names(tmp_path / "run/checkpoints") == ["step-00000008", "step-00000012"]
