"""The list of wrong edits is kept up, and a wrong edit that no test notices would be seen."""

import pathlib

import pytest

import mutate
from conftest import ROOT


def test_every_wrong_edit_applies_to_the_code_as_it_is(tmp_path):
    for edit in mutate.EDITS:
        copy = tmp_path / edit.file
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / edit.file).read_bytes())
        mutate.apply(edit, tmp_path)
        compile(copy.read_text(), edit.file, "exec")
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


@pytest.mark.parametrize("new, expected", [("a + b", "survived"), ("a - b", "failed"),
                                           ("a +", "not loaded")])
def test_an_edit_is_told_by_whether_the_tests_fail(tmp_path, new, expected):
    """A comment's worth of an edit survives; so does none that a test looks at."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "tiny.py").write_text("def add(a, b):\n    return b + a\n")
    (root / "tests/conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\nsys.modules.pop('tiny', None)\n")
    (root / "tests/test_tiny.py").write_text(
        "from tiny import add\n\n\ndef test_add():\n    assert add(2, 1) == 3\n")
    edit = mutate.Edit("tiny.py", "b + a", new, "", "tiny")
    found, _ = mutate.verdict(root, edit, pathlib.Path(tmp_path, "log"))
    assert found == expected and (root / "tiny.py").read_text().endswith("b + a\n")
