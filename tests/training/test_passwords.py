"""A run that logs to a server with a password: it is in nothing that is shown or sent."""

import os
import stat

import mlflow
import pytest

from cmgems.config.command_line import load_config
from cmgems.downstream.publish import find_parent
from cmgems.errors import UnavailableError
from cmgems.pretrain import pretrain
from cmgems.tracking.outbox import sync
from tests.training.launching import forget_accelerator

PASSWORD = "s3cret-word"


@pytest.mark.slow
def test_a_run_shows_its_password_nowhere(server, tiny_recipe, tmp_path, capfd, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o022)
    request.addfinalizer(lambda: os.umask(umask))
    address = server.uri.replace("//", f"//me:{PASSWORD}@")
    arguments = ["--config", str(tiny_recipe), "--tracking.uri", address, "--output", str(tmp_path / "run")]
    try:
        pretrain(load_config(arguments))
    finally:
        forget_accelerator()
    find_parent(tmp_path / "scores", address, "scores", "toy")
    sync(tmp_path / "run")
    server.kill()
    with pytest.raises(UnavailableError) as away:
        find_parent(tmp_path / "others", address, "scores", "toy")
    server.start()
    printed = capfd.readouterr()
    assert PASSWORD not in printed.out + printed.err + str(away.value)

    with_it = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert {path.relative_to(tmp_path).as_posix() for path in with_it} == {
        "run/tracking.jsonl",
        "scores/downstream/mlflow.json",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in with_it} == {0o600}

    client = mlflow.MlflowClient(server.uri)
    [run] = client.search_runs([client.get_experiment_by_name("cmgems-pretraining").experiment_id])
    assert run.data.params["tracking.uri"] == server.uri.replace("//", "//me:***@")
    assert PASSWORD not in str(run.to_dictionary())
    kept = [path for path in server.folder.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in kept)
    assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]
