"""Every `$ dhc ...` and `$ make ...` line of the pages names verbs, options and targets that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from dhc.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(p.relative_to(REPOSITORY)) for p in sorted(REPOSITORY.glob("docs/*.md"))),
]


def _lines(command: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        found += [(page, line) for line in re.findall(rf"^(?:\$ |    )({command} .+)$", text, flags=re.MULTILINE)]
    return found


def test_the_pages_show_every_verb() -> None:
    shown = {shlex.split(line, comments=True)[1] for page, line in _lines("dhc") if page == "README.md"}
    assert shown == set(get_command(app).commands)


@pytest.mark.parametrize(("page", "line"), _lines("dhc"), ids=lambda text: text[:40])
def test_command_line_parses(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    group = get_command(app)
    if words[0].startswith("-"):
        assert words[0] in {"--help", "--install-completion"}, page
        return
    group.commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize(("page", "line"), _lines("make"), ids=lambda text: text[:40])
def test_make_target_exists(page: str, line: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert shlex.split(line, comments=True)[1] in targets, page
