"""CONTRIBUTING.md keeps its word: its op, pass and backend work as packages of a third party, and fit on a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# A printed page at the width of the repository.
_PAGE = 90


def _sections(repository: Path) -> dict[str, str]:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def _install(section: str, folder: Path) -> str:
    """Lays the section's module and its entry point into a folder as an installed package; returns the check."""
    module, check = _blocks(section, "python")
    (announcement,) = _blocks(section, "toml")
    name = re.match(r"# (\w+)\.py\n", module)
    assert name is not None, "the first line of the module names its file"
    (folder / f"{name[1]}.py").write_text(module, encoding="utf-8")
    group = re.search(r'entry-points\."(.+?)"', announcement)
    assert group is not None
    entry = announcement.splitlines()[1].replace('"', "")
    info = folder / f"{name[1]}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name[1]}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{entry}\n", encoding="utf-8")
    return check


@pytest.mark.parametrize("title", ["An op", "A pass", "A backend"])
def test_the_code_of_the_page_works(title: str, repository: Path, tmp_path: Path) -> None:
    section = _sections(repository)[title]
    assert section.count("\n") <= _PAGE, f"{title} is longer than a page"
    check = _install(section, tmp_path)
    assert "assert" in check
    script = tmp_path / "check.py"
    script.write_text(check, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(repository), str(repository / "runtime")])
    environment = {**os.environ, "PYTHONPATH": path, "DHC_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_the_package_the_op_is_unknown(repository: Path, tmp_path: Path) -> None:
    """The check above proves something only if dhc has no such op of its own."""
    import dhc.ir
    from dhc.passes.base import pass_names

    assert not dhc.ir.has("soft_shrink")
    assert "drop_double_neg" not in pass_names()


def test_links_and_folders_that_the_page_names_exist(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text)) | set(re.findall(r"`((?:dhc|docs|tests|bench)/[\w/.]+)`", text))
    assert named
    assert [name for name in sorted(named) if not (repository / name).exists()] == []
