"""The artifact file: reproducible, readable by every unzip tool, and refused when a single bit differs."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from dhc_runtime import zip_layout
from dhc_runtime.container import ArtifactReader, artifact_chunks, load_json, write_artifact
from dhc_runtime.errors import ArtifactError, UsageError

MEMBERS = {
    "plan.json": b"{}",
    "graph.txt": b"",
    "weights.safetensors": [b"abc" * 3000, memoryview(b"defg")],
    "cpu/code.o": bytes(range(256)) * 40,
}
MANIFEST = {"name": "m", "devices": {}}


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return write_artifact(None, MANIFEST, MEMBERS)


def test_same_input_gives_same_bytes_in_any_order(artifact: bytes, tmp_path: Path) -> None:
    shuffled = dict(reversed(list(MEMBERS.items())))
    assert write_artifact(None, dict(reversed(list(MANIFEST.items()))), shuffled) == artifact
    write_artifact(tmp_path / "m.dhc", MANIFEST, MEMBERS)
    assert (tmp_path / "m.dhc").read_bytes() == artifact
    assert b"".join(artifact_chunks(MANIFEST, MEMBERS)) == artifact


def test_zip_tools_read_it_and_members_are_page_aligned(artifact: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(artifact)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == ["manifest.json", "plan.json", "graph.txt", "weights.safetensors", "cpu/code.o"]
        assert archive.read("cpu/code.o") == MEMBERS["cpu/code.o"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.comment.startswith(b"dhc1 sha256=")
        for info in archive.infolist():
            name_size, extra_size = struct.unpack("<HH", artifact[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + name_size + extra_size) % 4096 == 0


def test_path_bytes_and_file_object(artifact: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dhc"
    path.write_bytes(artifact)
    for source in (path, str(path), artifact, bytearray(artifact), io.BytesIO(artifact)):
        with ArtifactReader(source) as reader:
            assert bytes(reader.member("weights.safetensors")) == b"abc" * 3000 + b"defg"
            assert reader.manifest["name"] == "m"
    with path.open("rb") as stream, ArtifactReader(stream) as reader:
        assert reader.members[0] == "manifest.json"
        with pytest.raises(ArtifactError, match="no member 'nothing'"):
            reader.member("nothing")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        ArtifactReader(tmp_path / "none.dhc")


def test_truncation_at_50_random_offsets(artifact: bytes) -> None:
    rng = random.Random(1)
    for offset in [0, 1, len(artifact) - 1, *(rng.randrange(len(artifact)) for _ in range(50))]:
        with pytest.raises(ArtifactError):
            ArtifactReader(artifact[:offset])


def test_one_flipped_bit_anywhere(artifact: bytes) -> None:
    """Every byte near a structure, and 200 random ones."""
    rng = random.Random(2)
    layout_bytes = set(range(300)) | set(range(len(artifact) - 500, len(artifact)))
    for offset in sorted(layout_bytes) + [rng.randrange(len(artifact)) for _ in range(200)]:
        damaged = bytearray(artifact)
        damaged[offset] ^= 1 << rng.randrange(8)
        with pytest.raises(ArtifactError):
            ArtifactReader(damaged)


def test_bytes_before_behind_and_between(artifact: bytes) -> None:
    for damaged in (b"x" + artifact, artifact + b"x", artifact[:5000] + b"x" + artifact[5000:], artifact * 2):
        with pytest.raises(ArtifactError):
            ArtifactReader(damaged)


def rebuilt(change_manifest: Any = None, comment: bytes | None = None, entries: Any = None) -> bytes:
    """An artifact whose hashes are right but whose content somebody chose."""
    contents = {name: b"".join(bytes(p) for p in ([m] if isinstance(m, bytes) else m)) for name, m in MEMBERS.items()}
    original = ArtifactReader(write_artifact(None, MANIFEST, MEMBERS)).manifest
    manifest = json.loads(json.dumps(original))
    if change_manifest is not None:
        manifest = change_manifest(manifest) or manifest
    import hashlib

    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    comment = comment or b"dhc1 sha256=" + hashlib.sha256(text).hexdigest().encode()
    order = ["plan.json", "graph.txt", "weights.safetensors", "cpu/code.o"]
    files = [("manifest.json", text)] + [(name, contents[name]) for name in order]
    if entries is not None:
        files = entries(files)
    layout = zip_layout.lay_out([zip_layout.Entry(n, len(d), zlib.crc32(d)) for n, d in files], comment)
    return b"".join(h + d for (_, h), (_, d) in zip(layout.headers, files)) + layout.tail


def test_the_rebuilding_of_these_tests_is_right() -> None:
    ArtifactReader(rebuilt())


def put(*path: str, value: Any) -> Any:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value=2), "format 2"),
        (put("members", value=None), "lists no members"),
        (put("members", value={str(i): {} for i in range(64)}), "too many"),
        (put("members", "plan.json", value=3), "wrongly"),
        (put("members", "../evil", value={"bytes": 0, "sha256": "", "crc32": 0}), "wrongly"),
        (put("members", "plan.json", "bytes", value=1 << 60), "cannot be"),
        (put("members", "plan.json", "bytes", value=-1), "cannot be"),
        (put("members", "plan.json", "bytes", value=True), "cannot be"),
        (put("members", "plan.json", "sha256", value="00" * 32), "plan.json does not match its hash"),
        (put("members", "plan.json", "sha256", value=None), "cannot be"),
        (put("members", "graph.txt", "bytes", value=9), "not as it was written"),
        (put("members", "weights.safetensors", "bytes", value=4), "bytes where its manifest"),
        (lambda manifest: b"[" * 200_000, "not valid JSON"),
        (lambda manifest: b"[1]", "not a JSON table"),
        (lambda manifest: b'{"format": 1, "format": 1}', "twice"),
        (lambda manifest: b'{"format": NaN}', "NaN"),
        (lambda manifest: b"\xff\xfe", "not valid JSON"),
    ],
)
def test_a_tampered_manifest_with_right_hashes(change: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        ArtifactReader(rebuilt(change))


def test_swapped_renamed_duplicated_and_missing_members() -> None:
    swaps = [
        lambda files: [files[0], files[2], files[1], *files[3:]],
        lambda files: [*files, files[1]],
        lambda files: files[:-1],
        lambda files: [files[0], ("plan.json", files[4][1]), *files[2:4], ("cpu/code.o", files[1][1])],
        lambda files: [files[0], ("plan2.json", files[1][1]), *files[2:]],
        lambda files: [files[0]] * 70,
    ]
    for change in swaps:
        with pytest.raises(ArtifactError):
            ArtifactReader(rebuilt(entries=change))


def test_a_wrong_comment() -> None:
    for comment in (b"x" * 76, b"dhc1 sha256=" + b"0" * 64, b"short"):
        with pytest.raises(ArtifactError):
            ArtifactReader(rebuilt(comment=comment))


def test_compressed_and_ordinary_zip_files_are_refused(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{compression}.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("manifest.json", "{}" * 5000)
            archive.comment = b"dhc1 sha256=" + b"0" * 64
        with pytest.raises(ArtifactError):
            ArtifactReader(path)


HOSTILE = """
import os, resource, struct, sys
from dhc_runtime.container import ArtifactReader
from dhc_runtime.errors import DhcError
path = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open("/proc/self/statm") as stream:
    used = int(stream.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), used + (200 << 20)))
try:
    ArtifactReader(path)
except DhcError as error:
    print(type(error).__name__, str(error).count(chr(10)))
"""


def hostile_files(folder: Path, artifact: bytes) -> list[Path]:
    declared = bytearray(artifact)
    declared[22:26] = struct.pack("<I", 0xFFFFFFF0)
    sparse = folder / "sparse"
    with sparse.open("wb") as stream:
        # 64 GiB that only look like an artifact at both ends.
        stream.write(artifact[:4096])
        stream.seek((64 << 30) - 98)
        stream.write(artifact[-98:])
    zeros = folder / "zeros"
    with zeros.open("wb") as stream:
        stream.truncate(64 << 30)
    (folder / "declared").write_bytes(declared)
    return [sparse, zeros, folder / "declared"]


def test_hostile_files_take_little_memory(artifact: bytes, tmp_path: Path) -> None:
    for path in hostile_files(tmp_path, artifact):
        done = subprocess.run([sys.executable, "-c", HOSTILE, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.split() in (["ArtifactError", "0"], ["ResourceError", "0"]), (path, done.stdout)


JSON_BOMB = """
import resource, sys
from dhc_runtime.strict_json import parse_table
from dhc_runtime.errors import ArtifactError
texts = {
    "tables": b'{"a":[' + b"{}," * 8_000_000 + b"{}]}",
    "numbers": b'{"a":[' + b"1.5," * 1_400_000 + b"1]}",
    "keys": b"{" + b",".join(b'"%d":{}' % i for i in range(700_000)) + b"}",
    "deep": b'{"a":' + b"[" * 1_000_000,
    "long": b'{"a":"' + b"x" * 30_000_000 + b'"}',
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    parse_table(texts[sys.argv[1]], "it", 32 << 20)
except ArtifactError as error:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("kind", ["tables", "numbers", "keys", "deep", "long"])
def test_parsing_hostile_json_takes_less_than_200_mb(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", JSON_BOMB, kind], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200


def test_load_json_limits() -> None:
    with pytest.raises(ArtifactError, match="more than"):
        load_json(b"{}" * 10, "here", 5)


def test_unusable_member_names_are_refused_when_writing() -> None:
    for name in ("", "/a", "a/../b", "manifest.json", "a b", "é", "x" * 200):
        with pytest.raises(UsageError):
            write_artifact(None, {}, {name: b""})
    with pytest.raises(UsageError, match="at most"):
        write_artifact(None, {}, {f"f{i}": b"" for i in range(64)})


def test_sizes_beyond_4_gib_use_zip64(tmp_path: Path) -> None:
    big = 5 << 30
    entries = [
        zip_layout.Entry("a", 10, 1),
        zip_layout.Entry("b", big, 2),
        zip_layout.Entry("c", 3, zlib.crc32(b"end")),
    ]
    layout = zip_layout.lay_out(entries, b"comment")
    assert all(start % zip_layout.ALIGNMENT == 0 for start in layout.data)
    path = tmp_path / "sparse.zip"
    with path.open("wb") as stream:
        for start, data in [*layout.headers, (layout.data[2], b"end"), (layout.size - len(layout.tail), layout.tail)]:
            stream.seek(start)
            stream.write(data)
    assert path.stat().st_size == layout.size
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [10, big, 3]
        assert [info.header_offset for info in archive.infolist()] == [start for start, _ in layout.headers]
        assert archive.read("c") == b"end"
