"""The file in which a run keeps what it has to tell MLflow, and the thread that sends it."""

import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmgems.errors import UserError
from cmgems.tracking import journal as journals
from cmgems.tracking.journal import (
    InUseError,
    Journal,
    MlflowRunRef,
    Sender,
    find_place,
    lock_run_folder,
    read_contents,
)

HERE = MlflowRunRef("sqlite:///here.db", "experiment", "run-a")


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path)
    opened.begin(HERE)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(journals, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(journals, "LONGEST_PAUSE", 0.02)


def contents(messages):
    return [message.content for message in messages]


def reopened(journal):
    journal.close()
    return Journal(journal.folder)


def test_messages_come_back_in_their_order(journal):
    for number in range(5):
        journal.append({"number": number})
    assert contents(journal.unsent(3)) == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert {message.place for message in journal.messages()} == {HERE}


def test_what_is_marked_as_sent_is_not_sent_again_by_another_process(journal):
    for number in range(5):
        journal.append({"number": number})
    journal.mark_sent(journal.unsent(2)[-1])
    again = reopened(journal)
    assert contents(again.unsent(9)) == [{"number": 2}, {"number": 3}, {"number": 4}]
    assert again.count_unsent() == 3
    assert len(list(again.messages())) == 5
    again.close()


def test_contents_are_read_while_another_process_writes(journal):
    journal.append({"number": 0})
    journal.append({"number": 1})
    with journal.path.open("ab") as file:
        file.write(b'{"number": 2')
    before = sorted((path, path.read_bytes()) for path in journal.folder.iterdir())
    assert read_contents(journal.folder) == [{"number": 0}, {"number": 1}]
    assert sorted((path, path.read_bytes()) for path in journal.folder.iterdir()) == before


def test_a_folder_without_a_journal_has_no_contents(tmp_path):
    assert read_contents(tmp_path) == []


@pytest.mark.parametrize("noted", ["", "17 or so"])
def test_without_a_note_of_what_was_sent_all_is_sent_again(journal, noted):
    journal.append({"number": 0})
    journal.mark_sent(journal.unsent(1)[0])
    (journal.folder / "tracking.sent").write_text(noted)
    again = reopened(journal)
    assert again.count_unsent() == 1
    again.close()


def test_a_journal_that_lost_its_sent_end_goes_on_from_its_new_end(journal):
    for number in range(3):
        journal.append({"number": number})
    journal.mark_sent(journal.unsent(3)[-1])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    again = reopened(journal)
    again.append({"number": 3})
    assert contents(again.unsent(9)) == [{"number": 3}]
    again.close()


def test_a_line_that_a_crash_cut_short_is_passed_over(journal):
    journal.append({"number": 0})
    with journal.path.open("ab") as file:
        file.write(b'{"number": 1, "met')
    assert contents(journal.unsent(9)) == [{"number": 0}]
    again = reopened(journal)
    again.append({"number": 2})
    assert contents(again.unsent(9)) == [{"number": 0}, {"number": 2}]
    again.close()


def test_messages_of_a_run_that_has_moved_go_to_its_new_place(journal):
    journal.append({"number": 0})
    there = MlflowRunRef("http://there", "experiment", HERE.run)
    again = reopened(journal)
    again.begin(there)
    again.append({"number": 1})
    assert [(m.place, m.content["number"]) for m in again.unsent(9)] == [(there, 0), (there, 1)]
    again.close()


def test_a_second_run_in_the_same_folder_does_not_take_the_first_ones_messages(journal):
    journal.append({"number": 0})
    second = MlflowRunRef(HERE.uri, HERE.experiment, "run-b")
    journal.begin(second)
    journal.append({"number": 1})
    again = reopened(journal)
    again.begin(second)
    assert [(m.place.run, m.content["number"]) for m in again.unsent(9)] == [("run-a", 0), ("run-b", 1)]
    assert len(again.path.read_text().splitlines()) == 4
    again.mark_sent(again.unsent(1)[0])
    assert [m.place.run for m in again.unsent(9)] == ["run-b"]
    again.close()


def test_all_messages_of_a_run_go_to_the_one_that_takes_its_place(journal):
    for number in range(2):
        journal.append({"number": number})
    journal.mark_sent(journal.unsent(2)[-1])
    for run in ("run-b", "run-c"):
        before = journal.place.run
        there = MlflowRunRef("http://there", "experiment", run)
        journal.begin(there, replaces_run=before)
        journal = reopened(journal)
        assert journal.place == there
        assert [(m.place, m.content["number"]) for m in journal.unsent(9)] == [(there, 0), (there, 1)]
    journal.begin(there)
    journal.append({"number": 2})
    assert [(m.place, m.content["number"]) for m in journal.unsent(9)] == [(there, 0), (there, 1), (there, 2)]
    assert find_place(journal.folder) == there
    assert read_contents(journal.folder) == [{"number": number} for number in range(3)]
    journal.close()


def test_a_run_that_takes_anothers_place_does_not_send_those_before_it_again(journal):
    second, third = (
        MlflowRunRef("sqlite:///here.db", "experiment", "run-b"),
        MlflowRunRef("http://there", "experiment", "run-c"),
    )
    for number, place in enumerate((HERE, second)):
        journal.begin(place)
        journal.append({"number": number})
    journal.mark_sent(journal.unsent(2)[-1])
    journal.begin(third, replaces_run="run-b")
    assert [(m.place, m.content["number"]) for m in journal.unsent(9)] == [(third, 1)]
    again = reopened(journal)
    assert [(m.place, m.content["number"]) for m in again.unsent(9)] == [(third, 1)]
    again.close()


def test_a_run_that_takes_anothers_place_takes_what_is_unsent_of_those_before_it_too(journal):
    journal.append({"number": 0})
    there = MlflowRunRef("http://there", "experiment", "run-c")
    journal.begin(there, replaces_run=HERE.run)
    assert [(m.place, m.content["number"]) for m in journal.unsent(9)] == [(there, 0)]


def test_a_journal_has_one_process(journal):
    with pytest.raises(InUseError, match="is in use: its run has not ended"):
        Journal(journal.folder)
    reopened(journal).close()


def test_a_folder_that_is_held_is_waited_for(tmp_path, capsys):
    lock = lock_run_folder(tmp_path)
    with pytest.raises(InUseError) as refused:
        lock_run_folder(tmp_path, patience=0.1)
    assert refused.value.exit_code == 69
    threading.Timer(0.5, lock.release).start()
    held = lock_run_folder(tmp_path, patience=60)
    assert "is in use: waiting up to 60 s" in capsys.readouterr().err

    # The journal of the process that holds the folder keeps it until both have let go.
    own = Journal(tmp_path, held)
    held.release()
    with pytest.raises(InUseError):
        lock_run_folder(tmp_path)
    own.close()
    lock_run_folder(tmp_path).release()


@contextmanager
def largest_file(size):
    """No file of this process can grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_does_not_end_a_run_and_what_did_not_fit_comes_when_there_is_room(journal, capsys):
    journal.append({"number": 0})
    with largest_file(journal.path.stat().st_size + 10):
        for number in (1, 2):
            journal.append({"number": number})
        assert contents(journal.unsent(9)) == [{"number": 0}]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {journal.path} cannot be written to: training continues")
    journal.append({"number": 3})
    assert contents(journal.unsent(9)) == [{"number": number} for number in range(4)]


def test_what_never_fits_is_said_at_the_end(tmp_path, capsys):
    journal = Journal(tmp_path)
    journal.begin(HERE)
    with largest_file(journal.path.stat().st_size):
        journal.append({"number": 0})
        journal.close()
    assert f"1 messages for MLflow could not be kept in {journal.path}: lost" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_named():
    with pytest.raises(UserError, match=r"^/dev/null/run cannot be written to"):
        Journal(Path("/dev/null/run"))


def sending(taken, fail):
    """A `send` that takes one message at a time, and calls `fail()` before each."""

    def send(journal):
        while messages := journal.unsent(1):
            fail()
            taken.append(messages[0].content)
            journal.mark_sent(messages[0])
            yield 1

    return send


def test_messages_are_sent_while_the_run_goes_on(tmp_path):
    journal, taken, arrived = Journal(tmp_path), [], threading.Semaphore(0)
    journal.begin(HERE)
    sender = Sender(journal, HERE.uri, sending(taken, arrived.release))
    sender.start()
    for number in range(3):
        journal.append({"number": number})
        assert arrived.acquire(timeout=60)
    sender.finish(patience=60)
    assert taken == [{"number": number} for number in range(3)]


@pytest.mark.parametrize("error", [ConnectionError("refused"), KeyError("run"), RuntimeError(), MemoryError()])
def test_whatever_the_client_raises_is_outlived_and_said_once(tmp_path, capsys, error):
    journal, taken, failures = Journal(tmp_path), [], iter(range(5))

    def fail():
        if next(failures, None) is not None:
            raise error

    journal.begin(HERE)
    sender = Sender(journal, HERE.uri, sending(taken, fail))
    for number in range(10):
        journal.append({"number": number})
    sender.start()
    sender.finish(patience=60)
    assert [message["number"] for message in taken] == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: MLflow at sqlite:///here.db does not answer: ")
    assert f"metrics are kept in {tmp_path}/tracking.jsonl" in lines[0]
    assert lines[1] == "warning: MLflow at sqlite:///here.db answers again: 10 messages that were kept are sent"


def test_a_client_that_never_comes_back_keeps_the_journal_but_not_the_run(tmp_path):
    journal, release = Journal(tmp_path), threading.Event()
    journal.begin(HERE)
    journal.append({"number": 0})
    sender = Sender(journal, HERE.uri, sending([], release.wait))
    sender.start()
    sender.finish(patience=0.05)
    assert sender.is_alive()
    with pytest.raises(InUseError, match="is in use"):  # what is under way may still arrive: nobody else sends
        Journal(tmp_path)
    release.set()
    sender.join(60)
    Journal(tmp_path).close()


def test_at_the_end_slow_progress_is_waited_for_but_not_by_a_job_that_is_stopped(tmp_path):
    def finished(folder, **limits):
        folder.mkdir()
        journal = Journal(folder)
        journal.begin(HERE)
        for number in range(30):
            journal.append({"number": number})
        sender = Sender(journal, HERE.uri, sending([], lambda: threading.Event().wait(0.1)))
        sender.start()
        sender.finish(**limits)
        sender.join(60)
        return journal.count_unsent()

    assert finished(tmp_path / "finished", patience=2) == 0
    assert finished(tmp_path / "stopped", patience=2, at_most=0.5) > 0
