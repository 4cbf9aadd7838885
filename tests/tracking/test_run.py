"""A run in MLflow, with a server that answers, and with one that does not."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from cmgems.cli import main
from cmgems.config.command_line import load_config
from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from cmgems.errors import CmgemsError, Interrupted, InUseError, UnavailableError, UserError
from cmgems.tracking import client, outbox
from cmgems.tracking import run as tracking
from cmgems.tracking.journal import Journal
from cmgems.tracking.run import RunToTrack

NOWHERE = "http://127.0.0.1:9"
EVALUATIONS = [{"step": 4, "stage": "span", "perplexity": {"span": 9.0, "stage": 9.0}}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    text = "ACGGTCATTGCAACGTTAGC" * 40
    (folder / "genome.fa").write_text(f">a\n{text}\n>b\n{text[::-1]}\n")
    prepare_corpus(
        PrepareConfig(inputs=[str(folder / "genome.fa")], k=4, window_tokens=40, validation_chromosomes=["b"]),
        folder / "corpus",
        progress=False,
    )
    return load_corpus(folder / "corpus")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run folder"
    path.mkdir()
    return path


@pytest.fixture
def open_run(corpus, folder):
    """Function that opens a run in `folder`."""

    def start(uri, run_id=None, repeats_exactly=True, settings=()):
        quiet = ("--tracking.system_metrics", "false", "--tracking.patience", "60")
        config = load_config(
            ["--config", "demo", "--corpus.path", str(corpus.path), "--tracking.uri", uri, *quiet, *settings]
        )
        return tracking.open_run(config, corpus, RunToTrack("name", folder, None, run_id, repeats_exactly), True)

    return start


@pytest.fixture
def broken_off(open_run, database):
    """Id of a run that has logged steps 1 to 10 and then went on where there is no server, to step 20."""
    with open_run(database) as tracker:
        log(tracker, 1, 10)
    with open_run(NOWHERE, tracker.run_id, settings=("--tracking.patience", "0")) as again:
        log(again, 11, 20)
    until(sender_is_gone)
    return tracker.run_id


def log(tracker, first, last):
    for step in range(first, last + 1):
        tracker.metrics(step, {"train/loss": 1 / step, "usage/seconds": time.time()})


def steps(uri, run_id, metric="train/loss"):
    """Steps of all points of a metric, in the order of their times."""
    points = mlflow.MlflowClient(uri).get_metric_history(run_id, metric)
    return [point.step for point in sorted(points, key=lambda point: point.timestamp)]


def get(uri, run_id):
    return mlflow.MlflowClient(uri).get_run(run_id)


def until(condition):
    """Wait for what is sure to come."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def sender_is_gone():
    """Whether nothing is under way any more of a run that did not wait for its server."""
    return "tracking" not in {thread.name for thread in threading.enumerate()}


def test_a_new_run_has_settings_data_and_what_was_logged(open_run, database, folder, corpus, capsys):
    (folder / "models").mkdir()
    (folder / "models/weights").write_text("1, 2, 3")
    with open_run(database) as tracker:
        log(tracker, 1, 3)
        tracker.tags({"launch": "one process", "number": 7})
        tracker.validation_picture(EVALUATIONS, [], 12.0, {})
        tracker.model(folder / "models")
        tracker.note("a note")
    client, run = mlflow.MlflowClient(database), get(database, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "name"
    assert run.info.end_time >= run.info.start_time
    assert run.data.params["tracking.uri"] == database
    assert run.data.params["training.steps"]
    assert "resume" not in run.data.params
    tags = run.data.tags
    assert (tags["launch"], tags["number"], tags["mlflow.note.content"]) == ("one process", "7", "a note")
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)
    assert [(i.dataset.name, i.tags[0].value) for i in run.inputs.dataset_inputs] == [
        ("corpus-training", "training"),
        ("corpus-validation", "validation"),
    ]
    assert {i.dataset.digest for i in run.inputs.dataset_inputs} == {corpus.fingerprint[:32]}
    assert {f.path for f in client.list_artifacts(tracker.run_id)} == {"config.yaml", "perplexity.png", "model"}
    assert [f.path for f in client.list_artifacts(tracker.run_id, "model")] == ["model/weights"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.artifact_location.endswith("/mlartifacts")
    assert steps(database, tracker.run_id) == [1, 2, 3]
    assert (folder / "perplexity.png").is_file()
    assert mlflow.active_run() is None
    assert "MLflow" not in capsys.readouterr().err


def test_the_journal_is_plain_lines(open_run, database, folder):
    with open_run(database) as tracker:
        tracker.metrics(4, {"train/loss": 0.5})
    first, message, status = map(json.loads, (folder / "tracking.jsonl").read_text().splitlines())
    assert first == {"uri": database, "experiment": "cmgems-pretraining", "run": tracker.run_id}
    assert (message["step"], message["metrics"]) == (4, {"train/loss": 0.5})
    assert abs(message["time"] / 1000 - time.time()) < 600
    assert status["status"] == "FINISHED"
    assert int((folder / "tracking.sent").read_text()) == (folder / "tracking.jsonl").stat().st_size


def test_a_database_is_found_from_other_folders_too(open_run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run("sqlite:///mlflow.db"):
        pass
    assert (
        json.loads((folder / "tracking.jsonl").read_text().splitlines()[0])["uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    )


def test_other_ranks_leave_nothing(corpus, folder):
    config = load_config(["--config", "demo", "--corpus.path", str(corpus.path), "--tracking.uri", NOWHERE])
    with tracking.open_run(config, corpus, RunToTrack("name", folder), False) as tracker:
        log(tracker, 1, 3)
        tracker.tags({"a": 1})
        tracker.validation_picture(EVALUATIONS, [], 12.0, {})
        tracker.model(folder)
    assert tracker.run_id is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("a signal"), "KILLED"),
        (ValueError("a mistake"), "FAILED"),
        (UserError("a diverged run"), "FAILED"),
        (KeyboardInterrupt(), "FAILED"),
    ],
)
def test_a_run_that_does_not_finish_says_so(open_run, database, error, status):
    opened = []

    def run():
        with open_run(database) as tracker:
            opened.append(tracker.run_id)
            log(tracker, 1, 3)
            raise error

    with pytest.raises(type(error)):
        run()
    assert get(database, opened[0]).info.status == status
    assert steps(database, opened[0]) == [1, 2, 3]


@contextmanager
def silent_server():
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def answering(code, body):
    """A server with one answer to everything; without a code, it breaks off."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if code is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815  # so they are looked for

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_new_run_needs_mlflow(open_run, folder):
    with pytest.raises(UnavailableError, match=f"tracking.uri {NOWHERE}: "), open_run(NOWHERE):
        pass
    Journal(folder).close()  # nothing holds it


@pytest.mark.parametrize(
    ("code", "body", "exit_code"),
    [
        (503, b"the server behind this proxy is away", 69),
        (429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "later"}', 69),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', 2),
        (401, b"who are you", 2),
    ],
)
def test_a_new_run_that_mlflow_refuses_is_a_mistake_and_one_it_cannot_take_now_is_not(open_run, code, body, exit_code):
    with answering(code, body) as uri, pytest.raises(CmgemsError) as ended, open_run(uri):
        pass
    assert ended.value.exit_code == exit_code


@pytest.mark.slow
def test_a_new_run_does_not_wait_long_for_a_server_that_is_silent(open_run):
    with silent_server() as uri, pytest.raises(UnavailableError, match=f"tracking.uri {uri}: "), open_run(uri):
        pass


def test_a_silent_server_does_not_slow_a_run_down(open_run, folder, capsys, monkeypatch):
    monkeypatch.setattr(client, "_SECONDS_TO_ANSWER", 0.5)
    with silent_server() as uri:
        with open_run(uri, "0" * 32, settings=("--tracking.patience", "0.1")) as tracker:
            began = time.monotonic()
            log(tracker, 1, 200)
            assert time.monotonic() - began < 1
        said = capsys.readouterr().err
    # The run's status at its beginning and end, and 200 times metrics.
    assert f"202 messages for MLflow at {uri} are not sent yet" in said
    assert f"cmgems sync '{folder}'" in said


def test_a_run_that_is_interrupted_does_not_wait_for_a_silent_server(open_run, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_SECONDS_WHEN_STOPPED", 0.1)
    monkeypatch.setattr(client, "_SECONDS_TO_ANSWER", 0.5)

    def run():
        with open_run(uri, "0" * 32, settings=("--tracking.patience", "100000")):
            raise Interrupted("a signal")

    with silent_server() as uri, pytest.raises(Interrupted):
        run()
    assert "2 messages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "no"}'),
        (200, b"<html>Welcome to the conference centre. Please log in.</html>"),
        (200, b'[{"run": 1}]'),
        (404, b"<html>not here</html>"),
        (401, b'{"error_code": "UNAUTHENTICATED", "message": "expired"}'),
        (429, b'{"error_code": "RESOURCE_EXHAUSTED", "message": "later"}'),
        (None, b""),
    ],
)
def test_a_broken_server_takes_nothing_from_the_journal(open_run, folder, capsys, code, body):
    said = []
    with answering(code, body) as uri:
        with open_run(uri, "0" * 32, settings=("--tracking.patience", "0")) as tracker:
            log(tracker, 1, 5)
            until(lambda: said.append(capsys.readouterr().err) or "does not answer" in "".join(said))
        until(sender_is_gone)
    assert "7 messages" in capsys.readouterr().err
    assert not (folder / "tracking.sent").exists()


def test_a_resumed_run_needs_no_server_and_its_rest_is_sent_first_the_next_time(broken_off, open_run, database):
    assert steps(database, broken_off) == list(range(1, 11))
    with open_run(database, broken_off) as tracker:
        log(tracker, 16, 25)
    assert steps(database, broken_off) == list(range(1, 26))
    assert get(database, broken_off).info.status == "FINISHED"


def test_sync_sends_the_rest_once(broken_off, folder, database, capsys):
    capsys.readouterr()
    journal = folder / "tracking.jsonl"
    journal.write_text(journal.read_text().replace(NOWHERE, database))  # as if the server were back
    main(["sync", str(folder)])
    assert capsys.readouterr().out == f"{folder}: 12 messages sent\n"
    assert steps(database, broken_off) == list(range(1, 21))
    main(["sync", str(folder)])
    assert capsys.readouterr().out == f"{folder}: nothing to send\n"
    assert steps(database, broken_off) == list(range(1, 21))


def test_sync_names_a_server_that_does_not_answer(broken_off, folder, capsys):
    capsys.readouterr()
    before = (folder / "tracking.sent").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["sync", str(folder)])
    assert stop.value.code == 69
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder}: MLflow at {NOWHERE} does not take 12 of 12 messages, which stay in")
    assert (folder / "tracking.sent").read_text() == before


def test_sync_sends_what_it_can_of_several_runs(open_run, folder, database, tmp_path, capsys):
    with open_run(database):
        pass
    with pytest.raises(SystemExit) as stop:
        main(["sync", str(tmp_path), str(folder), "/no/such"])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == f"{folder}: nothing to send\n"
    assert f"error: {tmp_path} is not the folder of a run: there is no tracking.jsonl in it\n" in said.err
    assert "/no/such is not the folder of a run" in said.err


def test_sync_leaves_a_run_that_goes_on_alone(open_run, database, folder, capsys):
    with open_run(database), pytest.raises(SystemExit) as stop:
        main(["sync", str(folder)])
    assert stop.value.code == 69
    assert "is in use: its run has not ended, and sends to MLflow by itself" in capsys.readouterr().err


def test_two_processes_do_not_train_in_the_same_folder(open_run, database):
    with (
        open_run(database) as tracker,
        pytest.raises(InUseError, match="is in use"),
        open_run(database, tracker.run_id),
    ):
        pass


def test_sending_twice_does_not_double_metrics(open_run, database, folder):
    with open_run(database) as tracker:
        log(tracker, 1, 10)
        tracker.metrics(11, {"train/loss": 1.0, "train/other": float("nan")})
    (folder / "tracking.sent").unlink()
    outbox.sync(folder)
    assert steps(database, tracker.run_id) == list(range(1, 12))
    assert steps(database, tracker.run_id, "train/other") == [11]


def test_steps_that_are_trained_again_exactly_are_not_logged_again(open_run, database):
    with open_run(database) as tracker:
        log(tracker, 1, 10)
        tracker.metrics(10, {"curriculum/stage": 0})
    with open_run(database, tracker.run_id) as again:
        again.metrics(6, {"train/loss": 7.0, "train/new": 7.0})
        log(again, 7, 12)
        # The point at the end of a stage and the one at the beginning of the next are of the same step.
        again.metrics(10, {"curriculum/stage": 0})
        again.metrics(10, {"curriculum/stage": 1})
    assert steps(database, tracker.run_id) == list(range(1, 13))
    assert steps(database, tracker.run_id, "train/new") == [6]
    stages = mlflow.MlflowClient(database).get_metric_history(tracker.run_id, "curriculum/stage")
    assert [point.value for point in stages] == [0, 1]


def test_steps_that_are_trained_again_otherwise_are_logged_again(open_run, database):
    with open_run(database) as tracker:
        log(tracker, 1, 10)
    with open_run(database, tracker.run_id, repeats_exactly=False) as again:
        log(again, 7, 9)
    assert steps(database, tracker.run_id) == [*range(1, 11), 7, 8, 9]
    with open_run(database, tracker.run_id) as once_more:
        log(once_more, 7, 12)
    assert steps(database, tracker.run_id) == [*range(1, 11), 7, 8, 9, 10, 11, 12]


def test_a_run_that_is_resumed_with_another_store_gets_all_it_has_logged_there(open_run, broken_off, tmp_path, capsys):
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    with open_run(elsewhere, broken_off) as tracker:
        log(tracker, 16, 25)
    assert f"MLflow at {elsewhere} does not have the run {broken_off}: a new one" in capsys.readouterr().err
    assert tracker.run_id != broken_off
    assert steps(elsewhere, tracker.run_id) == list(range(1, 26))
    assert get(elsewhere, tracker.run_id).data.params["name"] == "demo"
    assert get(elsewhere, tracker.run_id).info.status == "FINISHED"

    # A checkpoint of before goes on with the new run, too.
    with open_run(elsewhere, broken_off) as again:
        log(again, 21, 30)
    assert again.run_id == tracker.run_id
    assert steps(elsewhere, tracker.run_id) == list(range(1, 31))


def test_a_run_that_comes_back_to_its_store_goes_on_with_its_run_there(open_run, broken_off, database, tmp_path):
    with open_run(f"sqlite:///{tmp_path}/by-mistake.db", broken_off) as mistaken:
        log(mistaken, 21, 25)
    with open_run(database, broken_off) as back:
        log(back, 26, 30)
    assert back.run_id == broken_off
    assert steps(database, broken_off) == list(range(1, 31))


def test_a_resumed_run_that_mlflow_cannot_take_now_goes_on(open_run, broken_off, tmp_path, monkeypatch, capsys):
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    with monkeypatch.context() as context:
        context.setattr(tracking, "_describe", fail_to_describe)
        with open_run(elsewhere, broken_off, settings=("--tracking.patience", "0")) as tracker:
            log(tracker, 21, 25)
    assert "and takes no new one: training continues (busy)" in capsys.readouterr().err
    until(sender_is_gone)
    with open_run(elsewhere, broken_off) as again:
        log(again, 26, 30)
    assert steps(elsewhere, again.run_id) == list(range(1, 31))
    assert get(elsewhere, again.run_id).data.params["name"] == "demo"


def fail_to_describe(*_):
    raise UnavailableError("busy")


def test_a_resumed_run_waits_for_an_answer_for_seconds_only(open_run, monkeypatch):
    monkeypatch.setattr(client, "_SECONDS_TO_ANSWER", 0.2)
    with silent_server() as uri:
        began = time.monotonic()
        with open_run(uri, "0" * 32, settings=("--tracking.patience", "0")):
            assert time.monotonic() - began < 5


def test_a_resumed_run_without_its_journal_begins_a_new_one(open_run, database, folder):
    with open_run(database) as tracker:
        log(tracker, 1, 10)
    for path in folder.iterdir():
        path.unlink()
    with open_run(database, tracker.run_id) as again:
        log(again, 11, 12)
    assert steps(database, tracker.run_id) == list(range(1, 13))


def test_what_mlflow_refuses_for_good_does_not_keep_the_rest_back(open_run, database, folder, capsys):
    too_long = "x" * 300
    with open_run(database) as tracker:
        log(tracker, 1, 3)
        tracker.metrics(4, {"train/loss": 1.0, too_long: 2.0})
        tracker.tags({"fine": "yes", too_long: "no"})
        log(tracker, 5, 6)
    run = get(database, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["fine"] == "yes"
    assert steps(database, tracker.run_id) == list(range(1, 7))
    said = capsys.readouterr().err
    assert said.count(f"MLflow refuses {too_long} = 2.0, which stays in the journal alone") == 1
    assert said.count(f"MLflow refuses {too_long} = no") == 1
    assert too_long in (folder / "tracking.jsonl").read_text()


def test_the_rest_of_a_run_that_was_deleted_waits_until_it_is_restored(broken_off, folder, database):
    journal = folder / "tracking.jsonl"
    journal.write_text(journal.read_text().replace(NOWHERE, database))
    client = mlflow.MlflowClient(database)
    client.delete_run(broken_off)
    with pytest.raises(UserError, match="does not take 12 of 12 messages"):
        outbox.sync(folder)
    client.restore_run(broken_off)
    outbox.sync(folder)
    assert steps(database, broken_off) == list(range(1, 21))


def test_an_artifact_that_is_gone_is_named_and_left_out(open_run, database, folder, capsys):
    with open_run(database) as tracker:
        tracker.model(folder / "models/step-1")
        log(tracker, 1, 3)
    assert steps(database, tracker.run_id) == [1, 2, 3]
    assert f"{folder}/models/step-1 is gone" in capsys.readouterr().err


def test_of_an_artifact_that_changed_in_an_outage_only_the_newest_is_sent(open_run, database, folder, monkeypatch):
    with open_run(database) as tracker:
        pass
    with open_run(NOWHERE, tracker.run_id, settings=("--tracking.patience", "0")) as again:
        for step in range(1, 6):
            again.validation_picture(EVALUATIONS, [], 12.0, {})
            log(again, step, step)
    until(sender_is_gone)
    journal = folder / "tracking.jsonl"
    journal.write_text(journal.read_text().replace(NOWHERE, database))
    uploads = []
    upload = mlflow.MlflowClient.log_artifact
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", lambda *a: uploads.append(a) or upload(*a))
    assert "12 messages sent" in outbox.sync(folder)
    assert len(uploads) == 1
    assert "perplexity.png" in {f.path for f in mlflow.MlflowClient(database).list_artifacts(tracker.run_id)}


def test_the_machine_is_measured_during_an_outage_too(open_run, database, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    cpu = "system/cpu_utilization_percentage"
    with open_run(database) as tracker:
        log(tracker, 1, 5)
    settings = ("--tracking.patience", "0", "--tracking.system_metrics", "true")
    with open_run(NOWHERE, tracker.run_id, settings=settings) as again:
        log(again, 6, 6)
        until(lambda: (folder / "tracking.jsonl").read_text().count(cpu) >= 5)
    until(sender_is_gone)
    with open_run(database, tracker.run_id):
        pass
    assert len(steps(database, tracker.run_id, cpu)) == (folder / "tracking.jsonl").read_text().count(cpu)
    assert set(steps(database, tracker.run_id, cpu)) <= {5, 6}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from cmgems.tracking import run as tracking
from cmgems.tracking.run import RunToTrack
from cmgems.config.command_line import load_config
from cmgems.data.corpus import load_corpus

corpus, folder, uri, run_id = sys.argv[1:]
config = load_config(["--config", "demo", "--corpus.path", corpus, "--tracking.uri", uri])
run = RunToTrack("name", Path(folder), None, run_id)
with tracking.open_run(config, load_corpus(Path(corpus)), run, True) as tracker:
    for step in range(8, 21):
        tracker.metrics(step, {"train/loss": 1 / step})
    tracker.tags({"who": "killed"})
    worker = os.fork()  # as a loader's, which outlives its parent for some seconds
    if worker == 0:
        os.close(1)
        os.close(2)
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_rest_of_a_killed_run_is_sent_first_when_it_is_resumed(open_run, database, corpus, folder):
    with open_run(database) as tracker:
        log(tracker, 1, 10)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(corpus.path), str(folder), NOWHERE, tracker.run_id],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(killed.stdout.split()[-1])
    try:
        assert killed.returncode == -signal.SIGKILL
        with (folder / "tracking.jsonl").open("a") as file:
            file.write('{"time": 17')
        with open_run(database, tracker.run_id) as resumed:
            log(resumed, 16, 25)
            resumed.tags({"who": "resumed"})
    finally:
        os.kill(worker, signal.SIGKILL)
    assert steps(database, tracker.run_id) == list(range(1, 26))
    run = get(database, tracker.run_id)
    assert run.data.tags["who"] == "resumed"
    assert run.info.status == "FINISHED"


def test_sync_gives_a_killed_run_no_status(broken_off, folder, database):
    journal = folder / "tracking.jsonl"
    *lines, last = journal.read_text().replace(NOWHERE, database).splitlines(keepends=True)
    assert "FINISHED" in last
    journal.write_text("".join(lines))
    outbox.sync(folder)
    assert get(database, broken_off).info.status == "RUNNING"


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_gets_everything_once(server, open_run, folder, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    (folder / "models").mkdir()
    (folder / "models/weights").write_text("1, 2, 3")
    with open_run(server.uri, settings=("--tracking.system_metrics", "true")) as tracker:
        log(tracker, 1, 50)
        until(lambda: len(steps(server.uri, tracker.run_id)) == 50)
        server.kill()
        log(tracker, 51, 100)
        until(lambda: "does not answer" in capsys.readouterr().err)
        log(tracker, 101, 150)
        tracker.validation_picture(EVALUATIONS, [], 12.0, {})
        tracker.model(folder / "models")
        server.start()
        log(tracker, 151, 200)
        tracker.note("the end")
    said = capsys.readouterr().err
    assert "does not answer" not in said  # it was said already
    assert said.count("answers again") == 1
    for metric in ("train/loss", "usage/seconds"):
        assert steps(server.uri, tracker.run_id, metric) == list(range(1, 201))
    cpu = "system/cpu_utilization_percentage"
    assert len(steps(server.uri, tracker.run_id, cpu)) == (folder / "tracking.jsonl").read_text().count(cpu)
    run = get(server.uri, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "the end"
    client = mlflow.MlflowClient(server.uri)
    assert {f.path for f in client.list_artifacts(tracker.run_id)} == {"config.yaml", "perplexity.png", "model"}
    assert [f.path for f in client.list_artifacts(tracker.run_id, "model")] == ["model/weights"]


@pytest.mark.slow
def test_what_a_server_that_is_away_at_the_end_missed_is_sent_by_sync(server, open_run, folder, capsys):
    with open_run(server.uri, settings=("--tracking.patience", "2")) as tracker:
        log(tracker, 1, 50)
        until(lambda: len(steps(server.uri, tracker.run_id)) == 50)
        server.kill()
        log(tracker, 51, 100)
    assert f"51 messages for MLflow at {server.uri} are not sent yet" in capsys.readouterr().err
    server.start()
    assert get(server.uri, tracker.run_id).info.status == "RUNNING"
    main(["sync", str(folder)])
    assert f"{folder}: 51 messages sent\n" in capsys.readouterr().out
    assert steps(server.uri, tracker.run_id) == list(range(1, 101))
    assert get(server.uri, tracker.run_id).info.status == "FINISHED"
    main(["sync", str(folder)])
    assert f"{folder}: nothing to send\n" in capsys.readouterr().out
