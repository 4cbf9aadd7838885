"""The image of docker/Dockerfile, built by buildah on a base made by debootstrap, for machines without Docker.

All files are below one temporary folder. Root only.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.machine import require

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = ("buildah", "debootstrap")
INSTALL = "apt-get install --no-install-recommends buildah debootstrap"

STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{folder}/storage"
runroot = "{folder}/storage-run"
"""

# What `apptainer exec` does by itself, and buildah when told to: the caller's user, environment and host names.
# The containers are made beforehand, one a node, as a container of buildah's is for one machine at a time.
INSIDE = """#!/usr/bin/env bash
export CONTAINERS_STORAGE_CONF={storage} BUILDAH_ISOLATION=chroot
mapfile -d '' environment < <(env -0 | grep -zE '^(SLURM|CMGEMS|MLFLOW|OMP|GLOO|TORCH|PYTHONUNBUFFERED)[A-Z_]*=')
exec buildah run --user "$(id -u):$(id -g)" --hostname "$(hostname)" -v /etc/hosts:/etc/hosts:ro -v {folder}:{folder} \\
    "{name}-$(hostname)" -- env "${{environment[@]}}" "$@"
"""


def require_buildah() -> None:
    """Skip, or fail where CI is set, on a machine that cannot build the image."""
    require(PROGRAMS, INSTALL, root=True)


class Image:
    """The built image; `with Image(folder) as image:`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = "localhost/cmgems"
        self._storage = folder / "storage.conf"
        self._environment = {
            **os.environ,
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(self._storage),
        }

    def __enter__(self) -> "Image":
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        self._storage.write_text(STORAGE.format(driver=driver, folder=self.folder))
        try:
            self._make_base()
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it with all its containers."""
        with suppress(AssertionError):
            self.buildah("rm", "--all")
            self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder)

    def buildah(self, *arguments: str | Path, seconds: float = 300) -> str:
        """Run buildah; returns its output."""
        finished = subprocess.run(
            ["buildah", *map(str, arguments)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert finished.returncode == 0, f"{arguments}: {finished.stdout[-5000:]}{finished.stderr[-5000:]}"
        return finished.stdout.strip()

    def container(self, name: str = "") -> str:
        """A new container, and its name."""
        return self.buildah("from", "--pull-never", *(["--name", name] if name else []), self.name)

    def command_in_jobs(self, folder: Path) -> Path:
        """A program for CONTAINER=, with a container for each node of the cluster, where jobs see the folder."""
        name = f"job-{folder.name}"
        for node in ("node1", "node2"):
            self.container(f"{name}-{node}")
        program = folder / "in-container"
        program.write_text(INSIDE.format(storage=self._storage, folder=folder, name=name))
        program.chmod(0o755)
        return program

    def _make_base(self) -> None:
        """Debian 12 with nothing but what is essential, as the image `base`."""
        root = self.folder / "base"
        log = self.folder / "debootstrap.log"
        with log.open("w") as output:
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", root], stdout=output, stderr=output, timeout=600
            )
        assert made.returncode == 0, log.read_text()[-5000:]
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, root, "/")
        self.buildah("commit", "--quiet", container, "localhost/base")
        self.buildah("rm", container)
        shutil.rmtree(root)

    def _build(self) -> None:
        """The image, with this machine's certificates and its folder of packages for pip, if it has any."""
        settings, options = ["[global]"], []
        if certificates := os.environ.get("PIP_CERT"):
            settings.append("cert = /run/secrets/ca.pem")
            options.append(f"--secret=id=ca.pem,src={certificates}")
        if packages := os.environ.get("PIP_FIND_LINKS"):
            settings.append(f"find-links = {packages}")
            options.append(f"--volume={packages}:{packages}:ro")
        (self.folder / "pip.conf").write_text("\n".join(settings))
        options.append(f"--secret=id=pip.conf,src={self.folder / 'pip.conf'}")
        self.buildah(
            *("bud", "--pull-never", "--layers", "--file", REPOSITORY / "docker/Dockerfile", "--tag", self.name),
            *("--build-arg", "BASE=localhost/base", *options, REPOSITORY),
            seconds=1800,
        )
