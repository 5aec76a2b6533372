"""The steps between a page of docs/ and its HTML."""

import json
from types import SimpleNamespace

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from site_hooks import docstrings, formulas, notebooks, repository

CELLS = [
    {"cell_type": "markdown", "source": ["# A first run\n", "in a notebook"]},
    {
        "cell_type": "code",
        "source": "print(1)",
        "outputs": [
            {"output_type": "stream", "text": ["1\n"]},
            {"output_type": "display_data", "data": {"image/png": "aGVs\nbG8=", "text/plain": "x"}},
        ],
    },
]


@pytest.fixture
def config(tmp_path):
    config = MkDocsConfig()
    config.load_dict({"site_name": "x", "docs_dir": str(tmp_path), "use_directory_urls": False})
    config.validate()
    config.plugins._current_plugin = "notebooks"
    return config


def shown(cells, config, tmp_path):
    (tmp_path / "first.ipynb").write_text(json.dumps({"cells": cells}))
    files = Files([File("first.ipynb", str(tmp_path), str(tmp_path / "site"), False)])
    page = notebooks.on_files(files, config).get_file_from_path("first.md")
    return page.content_string


def test_a_notebook_is_a_page_with_the_outputs_it_was_saved_with(config, tmp_path):
    page = shown(CELLS, config, tmp_path)
    assert page.startswith("# A first run\nin a notebook\n\n")
    assert "[first.ipynb](first.ipynb)" in page
    assert "~~~~~~python\nprint(1)\n~~~~~~\n\n~~~~~~text\n1\n~~~~~~" in page
    assert '<img alt="" src="data:image/png;base64,aGVsbG8=">' in page


def test_a_notebook_saved_with_an_error_is_refused(config, tmp_path):
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    with pytest.raises(ValueError, match=r"first.ipynb: .* ValueError: no"):
        shown([CELLS[0], {**CELLS[1], "outputs": [failed]}], config, tmp_path)


def test_formulas_are_mathml():
    html = '<p><span class="arithmatex">\\(r &lt; \\frac{q}{p}\\)</span> and \\(text\\)</p>'
    made = formulas.on_page_content(html, None, None, None)
    assert "<mfrac><mrow><mi>q</mi></mrow><mrow><mi>p</mi></mrow></mfrac>" in made
    assert 'display="inline"' in made and "&#x0003C;" in made and "and \\(text\\)" in made


def test_columns_of_a_docstring_are_a_list():
    fields = "logp      new\nold_logp  old, of\n          the engine"
    text = f"A batch.\n\n{fields}\n\nx  y\nSource: A paper."
    found = SimpleNamespace(docstring=SimpleNamespace(value=text))
    docstrings.Laid().on_object(obj=found)
    assert found.docstring.value == (
        "A batch.\n\n- `logp`: new\n- `old_logp`: old, of\n    the engine\n\n- `x`: y\n\n"
        "*Source:* A paper."
    )


@pytest.mark.parametrize(
    ("page", "written", "made"),
    [
        ("extending.md", "[a](../README.md#extend-it)", "[a](repository/README.md#extend-it)"),
        ("api/loss.md", "[a](../../bandpo/train.py)", "[a](../repository/bandpo/train.py.md)"),
        ("repository/README.md", "[a](docs/gpu.md)", "[a](../gpu.md)"),
        ("repository/README.md", "[a](configs)", "[a](configs/index.md)"),
        ("repository/recipes/small/README.md", "[a](../steady)", "[a](../steady/README.md)"),
        ("data.md", "[a](sampling.md#x) `b[c](d)` <https://e.org>", None),
        (
            "repository/README.md",
            "[![Licence](https://badges.example/x)](LICENSE)",
            "[Licence](LICENSE)",
        ),
        ("data.md", "[a](../no-such-file.md)", None),
        ("data.md", "[a](../../elsewhere.md)", None),
    ],
)
def test_links_to_the_repository_lead_to_the_sites_copies(page, written, made):
    of_page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert repository.on_page_markdown(written, of_page, None, Files([])) == (made or written)
