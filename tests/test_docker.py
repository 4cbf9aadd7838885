"""The image and the services of docker/: what can be seen in the files, and what is in an image that was built."""

import json
import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import mlflow.cli
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy.engine import make_url

from cmgems.config.command_line import load_config
from tests.support.container import REPOSITORY

DOCKER = REPOSITORY / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()
NOT_PINNED = {"torch"}
"""Chosen by a build argument; on GPUs it brings NVIDIA's packages, which it pins itself."""


def constraints():
    """Versions in docker/constraints.txt, by name."""
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def requirements():
    """What cmgems and its MLflow server need: their own requirements, and those of all packages installed for them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    seen = set()
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        requirement = Requirement(text)
        yield requirement
        for below in _requires(requirement.name):
            extras = requirement.extras or {""}
            marker = Requirement(below).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(below.split(";")[0].strip())


def _requires(name):
    try:
        return requires(name) or []
    except PackageNotFoundError:  # the server's, in an environment for development
        return []


def test_the_image_pins_every_package_that_cmgems_needs_at_a_version_that_it_takes():
    pins = constraints()
    needed = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert needed - set(pins) == NOT_PINNED
    wrong = [
        f"{requirement} but {version}"
        for requirement in requirements()
        if (version := pins.get(canonicalize_name(requirement.name))) and version not in requirement.specifier
    ]
    assert wrong == []


def test_torch_of_the_image_is_one_that_cmgems_takes():
    [chosen] = re.findall(r"^ARG TORCH=torch==(.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    refused = [str(needed) for needed in requirements() if needed.name == "torch" and chosen not in needed.specifier]
    assert refused == []


def compose(**variables):
    """The services, with variables as Compose fills them in; KeyError for one that has to be set."""

    def fill(match):
        name, operator, rest = match.groups()
        if operator == ":?" and name not in variables:
            raise KeyError(name)
        return variables.get(name, rest)

    return yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", fill, COMPOSE))["services"]


def test_the_database_has_no_password_until_somebody_sets_one():
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        compose()
    passwords = re.findall(r"^ *(\w*PASSWORD): (.*)$", COMPOSE, re.MULTILINE)
    assert passwords
    for name, value in passwords:
        assert value.startswith("${POSTGRES_PASSWORD:?"), name


def test_services_are_reached_from_this_machine_only():
    ports = {name: service["ports"] for name, service in compose(POSTGRES_PASSWORD="x").items() if "ports" in service}
    assert ports == {"mlflow": ["127.0.0.1:5000:5000"]}


def test_the_server_starts_with_options_that_mlflow_has():
    command = compose(POSTGRES_PASSWORD="x")["mlflow"]["command"]
    assert command[:2] == ["mlflow", "server"]
    options = mlflow.cli.cli.commands["server"].make_context("server", command[2:]).params
    assert (options["port"], options["serve_artifacts"]) == (5000, True)
    [volume] = compose(POSTGRES_PASSWORD="x")["mlflow"]["volumes"]
    assert volume.endswith(f":{options['artifacts_destination']}")


def test_the_database_is_reached_by_the_driver_that_is_installed():
    address = make_url(compose(POSTGRES_PASSWORD="x")["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"])
    assert f"{address.get_dialect().driver}-binary" in constraints()


def test_the_trainer_starts_a_recipe_that_reports_to_the_server():
    trainer = compose(POSTGRES_PASSWORD="x", GPUS="4")["trainer"]
    program, *launcher, entry, config, corpus, output, resume, tracking = trainer["command"]
    assert (program, launcher[0], launcher[2]) == ("accelerate", "launch", "--num_processes=4")
    assert (REPOSITORY / launcher[1].removeprefix("--config_file=")).exists()
    assert (REPOSITORY / entry).exists()
    settings = load_config([config, corpus, output, resume, tracking])
    assert settings.tracking.uri == "http://mlflow:5000"
    assert "mlflow:5000" in compose(POSTGRES_PASSWORD="x")["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    mounted = {volume.split(":")[1] for volume in trainer["volumes"]}
    assert {f"/{Path(path).parts[1]}" for path in (settings.corpus.path, settings.output)} == mounted
    [gpus] = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert gpus["count"] == 4


@pytest.fixture(scope="module")
def container(image):
    """Function that runs a command in a container of the image; returns its output."""
    name = image.container()
    yield lambda *command: image.buildah("run", name, "--", *command)
    image.buildah("rm", name)


@pytest.mark.matrix
def test_the_commands_work_in_the_image_for_a_user_who_is_not_root(container):
    assert container("id", "-u") == "10001"
    assert "prepare" in container("cmgems", "--help")
    assert "--training.steps" in container("python", "cmgems/pretrain.py", "--help")
    assert container("python", "-c", "import psycopg2; print('driver found')") == "driver found"
    assert container("which", "accelerate") == "/opt/venv/bin/accelerate"
    assert container("pip", "check") == "No broken requirements found."


@pytest.mark.matrix
def test_what_is_installed_in_the_image_is_what_was_pinned(container):
    installed = {
        canonicalize_name(row["name"]): row["version"] for row in json.loads(container("pip", "list", "--format=json"))
    }
    assert installed.pop("cmgems")
    assert {name: version for name, version in installed.items() if name not in {"torch", "pip"}} == constraints()


@pytest.mark.matrix
def test_the_image_can_compile_the_optimizer_of_a_config_that_wants_deepspeeds_own(container):
    code = "from deepspeed.ops.op_builder import CPUAdamBuilder; print(CPUAdamBuilder().load(verbose=False).__name__)"
    assert container("python", "-c", code).splitlines()[-1] == "cpu_adam"


@pytest.mark.matrix
def test_pip_settings_and_certificates_of_the_build_are_not_in_the_image(image):
    name = image.container()
    root = Path(image.buildah("mount", name))
    secrets = [image.folder / "pip.conf", *([Path(os.environ["PIP_CERT"])] if "PIP_CERT" in os.environ else [])]
    sizes = {secret.stat().st_size: secret for secret in secrets}
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10_000
    assert [
        path
        for path in files
        if path.stat().st_size in sizes and path.read_bytes() == sizes[path.stat().st_size].read_bytes()
    ] == []
    assert not (root / "root/.cache").exists()
    described = image.buildah("inspect", name)
    assert [word for word in ("PIP_CERT", "PIP_FIND_LINKS", "ca.pem=") if word in described] == []
    image.buildah("rm", name)
