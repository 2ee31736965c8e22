"""The list of wrong edits is kept up, and a wrong edit that no test notices would be seen."""

import shutil
import subprocess
import sys

import pytest

import mutate
from conftest import ROOT


def test_every_wrong_edit_applies_to_the_code_as_it_is(tmp_path):
    for edit in mutate.EDITS:
        copy = tmp_path / edit.file
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / edit.file).read_bytes())
        mutate.apply(edit, tmp_path)
        if edit.file.endswith(".py"):
            compile(copy.read_text(), edit.file, "exec")
        elif edit.file.endswith(".c"):
            if shutil.which("cc"):
                subprocess.run(["cc", "-fsyntax-only", "-DD=128", "-DH=4", copy], check=True)
        else:
            subprocess.run(["bash", "-n", copy], check=True)
    assert len(mutate.EDITS) >= 60
    assert len({(e.file, e.new, e.old) for e in mutate.EDITS}) == len(mutate.EDITS)
    for edit in mutate.EDITS:
        for file, *_ in mutate.arguments_of(edit.tests):
            assert (ROOT / file).exists(), edit


def test_an_edit_that_does_not_apply_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 1", "y"):
        with pytest.raises(ValueError, match="expected once"):
            mutate.apply(mutate.Edit("a.py", old, "z", "", ""), tmp_path)


def test_an_edit_is_told_by_whether_the_tests_fail(tmp_path):
    """An edit that no test looks at survives."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "tiny.py").write_text("def add(a, b):\n    return b + a\n")
    (root / "tests/conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\nsys.modules.pop('tiny', None)\n")
    (root / "tests/test_tiny.py").write_text(
        "from tiny import add\n\n\ndef test_add():\n    assert add(2, 1) == 3\n")
    found = subprocess.run(  # a process of its own: what has threads, as this may, had best not fork
        [sys.executable, "-c", "import pathlib, mutate\nfor new in ('a + b', 'a - b', 'a +'):\n"
         "    edit = mutate.Edit('tiny.py', 'b + a', new, '', 'tiny')\n"
         f"    root = pathlib.Path({str(root)!r})\n"
         "    print(mutate.verdict(root, edit, root / 'log')[0])"],
        cwd=ROOT / "tests", capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["survived", "failed", "not loaded"]
    assert (root / "tiny.py").read_text().endswith("b + a\n")
