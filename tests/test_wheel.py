"""The built wheel finds its configs, wherever it is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_an_installed_package_plans_from_any_folder(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    assert {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")} == {
        p.relative_to(site / "bandpo/configs") for p in (site / "bandpo/configs").rglob("*.yaml")
    }
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import bandpo; "
        f"assert bandpo.__file__.startswith({str(site)!r}); "
        "from bandpo.cli import main; sys.exit(main(['plan', 'method=band_tv']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "band_tv" in done.stdout
