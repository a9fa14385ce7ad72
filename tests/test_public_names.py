"""`from hspec_lab import name` gives what it says, whatever was imported before."""

import subprocess
import sys

import hspec_lab

SCRIPT = """
import pkgutil
import hspec_lab
modules = {module.name for module in pkgutil.iter_modules(hspec_lab.__path__)}
assert not modules & set(hspec_lab.__all__), modules & set(hspec_lab.__all__)
for name in hspec_lab.__all__:
    assert getattr(hspec_lab, name).__name__ == name, name
"""


def test_public_names_are_what_they_are_called_and_no_module_hides_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(hspec_lab, "nothing_of_the_kind")
    assert set(hspec_lab.__all__) <= set(dir(hspec_lab))
