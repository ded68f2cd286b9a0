"""A file appears whole or not at all, whatever happens to its writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dhc_runtime.errors import ResourceError, UsageError
from dhc_runtime.safe_write import atomic_file, sweep_orphans, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_bytes_and_chunks(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"one")
    write_bytes(tmp_path / "a", [b"t", memoryview(b"wo")])
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
        stream.write(b"half of the new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_a_resource_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    # The kernel refuses files beyond this limit as it refuses a full disk.
    script = (
        "import resource, signal, sys\n"
        "from dhc_runtime.safe_write import write_bytes\n"
        "from dhc_runtime.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_bytes(sys.argv[1], [bytes(50_000)] * 10)\n"
        "except ResourceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "no room" in done.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no room"):
        write_bytes("/dev/full", bytes(1 << 16))
    assert os.path.exists("/dev/full")


def test_a_killed_writer_leaves_the_old_file_and_an_orphan_that_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    script = (
        "import sys, time\n"
        "from dhc_runtime.safe_write import atomic_file\n"
        "with atomic_file(sys.argv[1]) as stream:\n"
        "    stream.write(b'x' * 100000)\n"
        "    stream.flush()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"ready\n"
        assert sweep_orphans(tmp_path, age_seconds=0) == 0, "the file of a living writer was taken"
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    (orphan,) = [name for name in names(tmp_path) if name != "a"]
    assert sweep_orphans(tmp_path) == 0, "an orphan may be young on a shared disk"
    past = time.time() - 7200
    os.utime(tmp_path / orphan, (past, past))
    write_bytes(path, b"new")
    assert names(tmp_path) == ["a"]


def test_other_hidden_files_are_never_swept(tmp_path: Path) -> None:
    for name in (".a.dhc-tmp-notapid-00", ".a.tmp", ".dhc", "a.dhc-tmp-999999999-00"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert sweep_orphans(tmp_path) == 0


def test_links_modes_and_folders(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    with pytest.raises(UsageError, match="folder"):
        write_bytes(tmp_path, b"")
    with pytest.raises(UsageError, match="cannot be written"):
        write_bytes(tmp_path / "no" / "such", b"")


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("模" * 83 + ".dhc")  # 253 bytes
    write_bytes(path, b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
