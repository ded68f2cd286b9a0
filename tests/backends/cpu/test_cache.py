"""The kernel cache: entries are checked, processes do not disturb each other, trouble never fails a compile."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from dhc.backends.cpu.cache import KernelCache, default_folder


def entries(folder):
    return sorted(folder.rglob("*.o"))


def test_an_entry_is_made_once_and_survives_the_process(tmp_path):
    made = []

    def make():
        made.append(1)
        return b"code"

    cache = KernelCache(tmp_path)
    assert cache.get_or_make("kernel", "target", make) == b"code"
    assert cache.get_or_make("kernel", "target", make) == b"code"
    assert KernelCache(tmp_path).get_or_make("kernel", "target", make) == b"code"
    assert len(made) == 1
    assert len(entries(tmp_path)) == 1


def test_text_target_and_versions_are_all_in_the_key(tmp_path, monkeypatch):
    cache = KernelCache(tmp_path)
    keys = {cache.key("a", "x"), cache.key("b", "x"), cache.key("a", "y"), cache.key("a\0x", "")}
    monkeypatch.setattr("dhc.backends.cpu.cache.code_versions", lambda: "another")
    assert len({*keys, cache.key("a", "x")}) == 5


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign", "exchange"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cache = KernelCache(tmp_path)
    cache.get_or_make("one", "t", lambda: b"first" * 100)
    (path,) = entries(tmp_path)
    stored = path.read_bytes()
    if damage == "exchange":  # a sound entry, but of another kernel
        cache.get_or_make("two", "t", lambda: b"second" * 100)
        other = next(p for p in entries(tmp_path) if p != path)
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes({"flip": stored[:-3] + b"!" + stored[-2:], "truncate": stored[:-1], "empty": b"",
                          "foreign": b"something else"}[damage])  # fmt: skip
    again = KernelCache(tmp_path)
    assert again.get_or_make("one", "t", lambda: b"again") == b"again"
    assert again.misses == 1
    assert KernelCache(tmp_path).get_or_make("one", "t", lambda: b"not called") == b"again"


def test_every_flipped_bit_of_a_small_entry_is_found(tmp_path):
    KernelCache(tmp_path).get_or_make("one", "t", lambda: b"code")
    (path,) = entries(tmp_path)
    stored = path.read_bytes()
    for position in range(len(stored)):
        path.write_bytes(bytes(b ^ 4 if i == position else b for i, b in enumerate(stored)))
        assert KernelCache(tmp_path).get_or_make("one", "t", lambda: b"fresh") == b"fresh"


def test_a_folder_that_cannot_be_used_gives_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = KernelCache(blocked / "cache")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for text in ("a", "b", "c"):
            assert cache.get_or_make(text, "t", lambda: b"code") == b"code"
    assert len(seen) == 1
    assert "DHC_CACHE_DIR" in str(seen[0].message)


def test_the_least_recently_used_entries_go_first(tmp_path):
    cache = KernelCache(tmp_path, limit=3500)
    for number in range(6):
        cache.get_or_make(str(number), "t", lambda: bytes(1000))
        os.utime(cache.path(cache.key(str(number), "t")), (1000 + number, 1000 + number))
    KernelCache(tmp_path).get_or_make("0", "t", lambda: b"not called")  # used now, so it stays
    cache.evict()
    left = {number for number in range(6) if cache.path(cache.key(str(number), "t")).exists()}
    assert left == {0, 4, 5}


def test_the_folder_is_chosen_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DHC_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("DHC_CACHE_DIR", "")
    assert default_folder() is None
    monkeypatch.delenv("DHC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_folder() == tmp_path / "dhc" / "kernels"


WRITER = """
import sys
from pathlib import Path
from dhc.backends.cpu.cache import KernelCache
for turn in range(int(sys.argv[2])):
    cache = KernelCache(Path(sys.argv[1]), limit=40_000)
    for number in range(30):
        data = bytes([number]) * 2000
        if cache.get_or_make(str(number), "t", lambda d=data: d) != data:
            sys.exit(1)
    cache.evict()
print("done", flush=True)
"""


def start(folder, turns):
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), str(root / "runtime")])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(turns)], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_processes_that_write_and_evict_at_once(tmp_path):
    running = [start(tmp_path, 20) for _ in range(3)]
    assert [p.wait(timeout=120) for p in running] == [0, 0, 0]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writers_leave_a_sound_cache(tmp_path):
    for number in range(6):
        process = start(tmp_path, 10_000)
        while not entries(tmp_path):
            time.sleep(0.01)
        time.sleep(0.02 * number)
        process.kill()
        process.wait()
    cache = KernelCache(tmp_path)
    for number in range(30):
        assert cache.get_or_make(str(number), "t", lambda n=number: bytes([n]) * 2000) == bytes([number]) * 2000
