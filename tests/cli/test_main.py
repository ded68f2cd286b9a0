"""The frame of the command line: help, version, statuses, errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dhc import __version__
from dhc.cli.failures import EXIT_CODES, report_failure
from dhc.cli.main import VERBS
from dhc.cli.models import kind_of
from dhc.errors import DhcError, UsageError
from tests.cli.conftest import Command

ALL_ERRORS = [cls for cls in vars(__import__("dhc.errors", fromlist=["x"])).values() if isinstance(cls, type)]


def test_help_names_every_verb_and_exit_code(dhc: Command) -> None:
    answer = dhc("--help")
    assert answer.status == 0
    for verb in VERBS:
        assert f" {verb} " in answer.out
        assert dhc(verb, "--help").status == 0
    for meaning in EXIT_CODES.values():
        assert meaning in answer.out


def test_version(dhc: Command) -> None:
    assert dhc("--version").out == f"dhc {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom dhc.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print([m for m in ('numpy', 'numba', 'llvmlite', 'onnx', 'PIL', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek", "x"], "check"),
        (["check"], "MODEL"),
        (["check", "x.onnx", "--explian"], "--explain"),
        (["run", "x.dhc", "--threads", "zero"], "--threads"),
    ],
)
def test_wrong_words_are_usage_errors_in_one_line(dhc: Command, words: list[str], said: str) -> None:
    answer = dhc(*words)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ") and said in answer.err and "--help" in answer.err
    assert answer.err.count("\n") == 1


def test_missing_file_suggests_a_close_name(dhc: Command) -> None:
    Path("model.onnx").write_bytes(b"x")
    answer = dhc("check", "modle.onnx")
    assert answer.status == 2
    assert "did you mean model.onnx?" in answer.err


def test_json_errors_are_json(dhc: Command) -> None:
    answer = dhc("check", "absent.onnx", "--json")
    assert answer.status == 2
    error = answer.data["error"]
    assert error["kind"] == "UsageError" and error["exit_code"] == 2 and "absent.onnx" in error["message"]
    assert answer.err.startswith("error: ")


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("doctor", "demo")])
def test_every_verb_reports_a_missing_file(dhc: Command, verb: str) -> None:
    assert dhc(verb, "absent.onnx").status == 2


@pytest.mark.parametrize("cls", [c for c in ALL_ERRORS if issubclass(c, DhcError)], ids=lambda c: c.__name__)
def test_every_error_class_has_a_documented_status(cls: type[DhcError], capsys: pytest.CaptureFixture[str]) -> None:
    error = cls("a", "b") if cls.__name__ == "MissingExtraError" else cls("something")
    assert report_failure(error, as_json=False, debug=False) in EXIT_CODES
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err


def test_debug_shows_the_traceback(dhc: Command) -> None:
    assert "Traceback" not in dhc("check", "absent.onnx").err
    assert "Traceback" in dhc("check", "absent.onnx", "--debug").err


def test_a_defect_is_one_paragraph(dhc: Command, monkeypatch: pytest.MonkeyPatch, classifier: Path) -> None:
    import dhc.cli.verbs.check as check

    def broken(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(check, "support_rows", broken)
    answer = dhc("check", classifier)
    assert answer.status == 1
    assert "Internal error, KeyError" in answer.err and "Traceback" not in answer.err


def test_interrupt_ends_with_130_and_one_line(tmp_path: Path) -> None:
    # `opt -` waits for standard input, which never comes: a moment that lasts until the interrupt.
    command = [sys.executable, "-m", "dhc.cli", "opt", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        _wait_until_it_reads(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        out, err = process.communicate()
    assert err == b"interrupted\n"
    assert out == b""


def _wait_until_it_reads(pid: int) -> None:
    """Until the process sleeps in a read of its standard input (Linux tells; elsewhere a while is waited)."""
    status = Path(f"/proc/{pid}/syscall")
    for _ in range(600):
        time.sleep(0.1)
        try:
            words = status.read_text().split()
        except OSError:
            time.sleep(5)
            return
        if len(words) > 1 and words[0] == "0" and int(words[1], 16) == 0:
            return


def test_a_reader_that_leaves_is_no_error(classifier: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dhc.cli", "inspect", str(classifier)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_standard_output_has_its_status(classifier: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "dhc.cli", "inspect", str(classifier)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 8
    assert b"No space left" in done.stderr and b"Traceback" not in done.stderr


def test_completion_offers_the_verbs() -> None:
    environment = {**os.environ, "_DHC_COMPLETE": "complete_bash", "COMP_WORDS": "dhc co", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['dhc']; from dhc.cli.main import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"compile", "compare"}


def test_the_page_shows_verbs_and_preprocessing(repository: Path) -> None:
    from dhc.cli.preprocessing import PREPROCESSING

    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in PREPROCESSING:
        assert f"| `{name}` |" in page
    for verb in VERBS:
        assert f"\n## {verb}\n" in page


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "demo_out"), 2, "(at demo_out). Name a folder"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), 2, "(at out). A file of that name is in the way"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "(at x). Check the path"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 8, "No space left"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "Input/output error (at x)."),
    ],
)
def test_errors_of_the_system_say_what_to_do(
    error: OSError, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_failure(error, as_json=False, debug=False) == status
    assert words in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")

    def denied(self: Path, mode: str = "r") -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match="change its permissions"):
        kind_of(str(path))
