"""Why a class that `_target_` names cannot be had: the text of the error, and what to do."""

import pytest

from bandpo.config.targets import why_not_built, why_not_imported

FILES = {
    "with_typo.py": "import torhc\n\nclass Rule:\n    pass\n",
    "not_python.py": "class Rule\n    pass\n",
    "raises.py": "\nraise RuntimeError('no licence')\n",
    "sound.py": "class Rule:\n    def __init__(self, eps):\n        assert eps > 0, 'eps > 0'\n",
    "half.py": "from sound import Role\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("target", "reasons"),
    [
        ("nowhere.Rule", ["No module named 'nowhere'", "PYTHONPATH=. bandpo"]),
        ("with_typo.Rule", ["No module named 'torhc'", "PYTHONPATH"]),
        ("not_python.Rule", ["SyntaxError: expected ':' (not_python.py, line 1)"]),
        ("raises.Rule", ["RuntimeError: no licence", "raises.py, line 2)"]),
        ("half.Rule", ["ImportError: cannot import name 'Role' from 'sound'", "half.py, line 1"]),
        ("sound.Rul", ["sound has no Rul; did you mean Rule?"]),
        ("bandpo.loss.Bandkl", ["bandpo.loss has no Bandkl; did you mean BandKL"]),
    ],
)
def test_an_error_of_an_import_keeps_its_text(target, reasons, capfd):
    for problem in (why_not_imported(target), why_not_built({"_target_": target})):
        assert problem and "\n" not in problem
        for reason in (f"Error loading '{target}'", *reasons):
            assert reason in problem, problem
    assert capfd.readouterr().err == ""


def test_an_error_of_the_class_itself_is_its_own():
    assert why_not_imported("sound.Rule") is None
    assert why_not_built({"_target_": "sound.Rule", "eps": 1}) is None
    assert why_not_built({"_target_": "sound.Rule", "eps": -1}) == "eps > 0"
    assert "missing 1 required positional argument" in why_not_built({"_target_": "sound.Rule"})
