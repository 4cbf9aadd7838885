"""What `cmgems study` gives its processes."""

import os
import subprocess
import sys

import pytest
import torch

from cmgems.study.run import _share_of_machine
from tests.training.launching import REPOSITORY


@pytest.mark.parametrize(
    ("visible", "shares"),
    [(None, ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"]), ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"])],
)
def test_processes_divide_the_gpus_that_this_one_may_use(monkeypatch, visible, shares):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [_share_of_machine(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == shares


def test_processes_divide_the_cores_where_there_are_too_few_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _share_of_machine(1, 3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _share_of_machine(1, 3) == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("module", ["cmgems.cli", "cmgems.finetune", "cmgems.tracking.run"])
def test_mlflow_finds_its_variables_whatever_is_imported_first(module):
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'mlflow':\n"
        "            assert os.environ.get('MLFLOW_DISABLE_TELEMETRY') == 'true'\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {module}\n"
        "import cmgems.downstream.publish\n"
        "assert 'mlflow' in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
