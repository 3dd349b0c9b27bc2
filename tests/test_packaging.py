"""What is installed: a wheel and an sdist of what is needed and nothing else, that import from anywhere."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import lrbench
from lrbench.compressors import compressor_class

ROOT = Path(__file__).resolve().parent.parent

USED = """
import sys
import lrbench, lrbench.cli, lrbench.report.page
from pathlib import Path
assert Path(lrbench.__file__).is_relative_to(sys.argv[1]), lrbench.__file__
from lrbench.presets import list_presets, load_preset
assert load_preset("demo").options["dataset"] == "photos"
assert "svd" in lrbench.list_compressors()
sys.exit(lrbench.cli.main(["list", "*aca*"]))
"""


def files_of(folder: Path) -> set[str]:
    """Files of the package as they are kept in the repository."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", folder], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of a copy of the repository, and the wheel that is built from it."""
    if find_spec("build") is None or find_spec("setuptools") is None:
        pytest.skip("build or setuptools is not installed: no wheel is built")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: what belongs into a wheel is not known")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in files_of(ROOT):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_a_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == files_of(ROOT / "lrbench")
    for needed in ("py.typed", "report/report.html.j2", "report/page.css", "report/page.js", "presets/demo.toml"):
        assert f"lrbench/{needed}" in package
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "lrbench = lrbench.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_an_sdist_holds_no_results(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of(ROOT / "lrbench") | {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if re.match(r"results/|\.ci/|\.asv/|data/", name)]
    assert sdist.stat().st_size < 2 << 20


def test_an_installed_wheel_is_used_from_anywhere(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "to"),
    ]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "to")}
    command = [sys.executable, "-c", USED, str(tmp_path / "to")]
    used = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert used.returncode == 0, used.stderr
    assert "aca-estimate" in used.stdout
    assert (tmp_path / "to" / "bin" / "lrbench").exists()


def test_the_citation_is_that_of_this_version_and_knows_the_methods() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["type"], cited["version"]) == ("1.2.0", "software", lrbench.__version__)
    assert f'version = "{lrbench.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## [{lrbench.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    methods, known = set(), lrbench.list_compressors()
    for reference in cited["references"]:
        assert reference["title"]
        for author in reference["authors"]:
            assert set(author) == {"family-names", "given-names"}
        for method in reference["notes"].split(", "):
            if method in known:
                methods.add(method)
                said = " ".join(" ".join(cls.__doc__ or "" for cls in compressor_class(method).__mro__).split())
                assert str(reference["year"]) in said, (method, reference["title"])
                assert reference["authors"][-1]["family-names"] in said, (method, reference["title"])
    # Those that are nobody's: the plain ones, the paper's own, and diagnostics.
    assert set(known) - methods == {"none", "input", "bf16", "aca-estimate", "svd-same-rank", "svd-same-error"}
