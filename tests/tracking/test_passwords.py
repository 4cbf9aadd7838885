"""The password of a tracking store is shown nowhere, and kept only where nobody else can read it."""

import os
import stat

import mlflow
import pytest

from cmgems.errors import UserError
from cmgems.runtime.passwords import has_password, hide_password
from cmgems.runtime.process import exit_on_error
from cmgems.tracking.journal import Journal, MlflowRunRef, summarize_error
from cmgems.tracking.outbox import sync

SECRET = "s3cr@t-word"


@pytest.mark.parametrize(
    ("shown", "hidden"),
    [
        ("http://me:s3cret@host:5000/x", "http://me:***@host:5000/x"),
        ("http://me:s3cret@again@host", "http://me:***@host"),
        ("http://me:s3/cret@host", "http://me:***@host"),
        ("http://:s3cret@host", "http://:***@host"),
        ("postgresql+psycopg2://me:s3cret@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3cret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("mysql://host/db?passwd=s3cret", "mysql://host/db?passwd=***"),
        ("of 'http://me:s3cret@host': refused (a@b)", "of 'http://me:***@host': refused (a@b)"),
    ],
)
def test_a_password_is_hidden(shown, hidden):
    assert hide_password(shown) == hidden
    assert has_password(shown)
    assert "s3cret" not in hide_password(shown)


@pytest.mark.parametrize("text", ["http://host:5000", "http://me@host", "sqlite:///mlflow.db", "10:00 me@host"])
def test_where_there_is_none_nothing_changes(text):
    assert hide_password(text) == text
    assert not has_password(text)


@pytest.mark.parametrize("length", range(60, 110))
def test_half_a_password_is_not_shown_where_a_message_is_cut(length):
    message = f"{'x' * length} http://me:{SECRET}@host {'y' * 300}"
    assert "s3c" not in summarize_error(ValueError(message))


def test_an_error_is_reported_without_it(capsys):
    with pytest.raises(SystemExit), exit_on_error():
        raise UserError(f"tracking.uri http://me:{SECRET}@host: no")
    assert capsys.readouterr().err == "error: tracking.uri http://me:***@host: no\n"


@pytest.fixture
def everybody_may_read():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("uri", "mode"), [(f"http://me:{SECRET}@127.0.0.1:9", 0o600), ("http://127.0.0.1:9", 0o644)])
def test_the_journal_is_its_owners_where_it_has_a_password(tmp_path, everybody_may_read, uri, mode):
    journal = Journal(tmp_path)
    journal.begin(MlflowRunRef(uri, "experiment", "run"))
    journal.close()
    assert stat.S_IMODE(journal.path.stat().st_mode) == mode


def test_an_artifact_outside_of_the_runs_folder_is_not_sent(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = mlflow.MlflowClient(uri).create_run("0").info.run_id
    (tmp_path / "own key").write_text("key")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "own key")
    (folder / "file").write_text("1")
    journal = Journal(folder)
    journal.begin(MlflowRunRef(uri, "experiment", run))
    for path in ("../own key", str(tmp_path / "own key"), "link", "file"):
        journal.append({"artifact": path, "to": None})
    journal.close()
    sync(folder)
    assert [entry.path for entry in mlflow.MlflowClient(uri).list_artifacts(run)] == ["file"]
    assert capsys.readouterr().err.count("is not in the run's folder") == 3
