"""What `import cmgems` gives."""

import subprocess
import sys

import pytest

import cmgems


def test_every_public_name_is_there():
    assert all(callable(getattr(cmgems, name)) for name in cmgems.__all__)
    assert set(cmgems.__all__) == set(cmgems._HOMES)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cmgems' has no attribute 'Maskers'"):
        cmgems.Maskers  # noqa: B018


@pytest.mark.slow
def test_importing_the_package_does_not_import_torch():
    program = "import sys, cmgems; print('torch' in sys.modules); cmgems.Masker; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
