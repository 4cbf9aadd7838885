"""studies/curriculum/fetch.py, with packages made here in the place of Debian's."""

import gzip
import io
import lzma
import subprocess
import sys
import tarfile
import threading
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from tests.training.launching import REPOSITORY

SCRIPT = REPOSITORY / "studies/curriculum/fetch.py"

X = b">X  gi|1|\nNNNNACGT\nACGTACGT\n"
MAF = b"##maf\na\ns Hsap.22 6 4 + 20 AC-gT\ns Ptro.22 1 4 + 20 ACTGT\n\na\ns Hsap.22 2 3 + 20 GGG\n"


@pytest.fixture
def script():
    """The script as a module."""
    spec = spec_from_file_location("fetch", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(member, content):
    """A Debian package with one file."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    parts = {"debian-binary": b"2.0", "control.tar.xz": b"x", "data.tar.xz": lzma.compress(data.getvalue())}
    archive = b"!<arch>\n"
    for name, part in parts.items():
        archive += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    return archive


@pytest.fixture
def mirror(tmp_path):
    """A server with a folder of packages."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_genomes_are_taken_out_of_the_packages(script, mirror, tmp_path, monkeypatch):
    for name, constant, content in (("x.deb", "CHROMOSOME_X", X), ("22.deb", "CHROMOSOME_22", MAF)):
        archive = package("./a/file.gz", gzip.compress(content))
        (tmp_path / "mirror").mkdir(exist_ok=True)
        (tmp_path / "mirror" / name).write_bytes(archive)
        monkeypatch.setattr(script, constant, (name, sha256(archive).hexdigest(), "./a/file.gz"))
    monkeypatch.setattr(script, "VALIDATION_START", 10)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "--mirror", mirror])
    monkeypatch.chdir(tmp_path)
    script.main()
    assert (tmp_path / "data/genomes/human-x.fa").read_text() == ">X\nNNNNACGTAC\n>X_validation\nGTACGT\n"
    assert (tmp_path / "data/genomes/human-22.fa").read_text() == ">22\nNNGGGNACgT\n"


def test_another_package_is_refused(script, mirror, tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/x.deb").write_bytes(b"something else")
    monkeypatch.setattr(script, "CHROMOSOME_X", ("x.deb", "0" * 64, "./a"))
    monkeypatch.setattr(sys, "argv", ["fetch.py", "--mirror", mirror])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is not the package that the study was made with"):
        script.main()
    assert not list(tmp_path.rglob("*.fa"))


def test_it_says_what_it_does():
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--mirror" in shown
