"""Files that ask for too much, take too long, or bring their decoder down: one clear error, then the next file."""

from __future__ import annotations

import gzip
import io as streams
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io import sandbox, wire
from dhc.ecvl_ops.io.limits import Limits, check_declared
from dhc.errors import DhcError, ModelError, ResourceError


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    pytest.skip("the system does not tell the peak memory")


def refused(content: bytes, kind: type[DhcError] | tuple = (ResourceError, ModelError), name: str = "") -> str:
    """The message of the refusal, in this process and in a confined one; memory must not grow."""
    before = peak_memory()
    with pytest.raises(kind) as caught:
        io.read(content, trusted=True, name=name)
    assert peak_memory() - before < 200 << 20
    with pytest.raises(kind) as confined:
        io.read(content, name=name)
    assert str(confined.value) == str(caught.value)
    return str(caught.value)


def test_a_deflated_dicom_bomb_is_refused() -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7"
    stream = streams.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    start = stream.getvalue()
    head = start[: start.index(b"1.2.840.10008.1.2.1.99") + 22]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    body = packer.compress(b"\x08\x00\x08\x00OB\0\0" + struct.pack("<I", 400 << 20))
    body += b"".join(packer.compress(zeros) for _ in range(400)) + packer.flush()
    # The group length must be right for the data set to begin where the deflated part does.
    assert "unpacks to more than" in refused(head + body)


def nifti_header(sizes: tuple[int, ...], code: int = 16, bits: int = 32) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into(f"<{1 + len(sizes)}h", header, 40, len(sizes), *sizes)
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def test_a_nifti_of_32767_cubed_is_refused() -> None:
    pytest.importorskip("nibabel", reason="nibabel is not installed")
    assert "declares" in refused(nifti_header((32767, 32767, 32767)) + bytes(1000))
    assert "declares" in refused(gzip.compress(nifti_header((32767, 32767, 32767)) + bytes(1000)))
    assert "holds" in refused(gzip.compress(nifti_header((2000, 2000, 400)) + bytes(1000)))


def test_an_array_of_8_tib_is_refused() -> None:
    stream = streams.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    assert "declares 8796093022208 bytes" in refused(stream.getvalue() + bytes(100))


def test_a_tiff_of_200000_squared_is_refused() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    stream = streams.BytesIO()
    tifffile.imwrite(stream, np.zeros((16, 16), np.uint8))
    content = bytearray(stream.getvalue())
    with tifffile.TiffFile(streams.BytesIO(bytes(content))) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages[0].tags[name]
            struct.pack_into("<HI", content, tag.offset + 2, 4, 1)
            struct.pack_into("<I", content, tag.offset + 8, 200_000)
    assert "200000 x 200000" in refused(bytes(content))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_png_of_20000_squared_is_refused() -> None:
    pytest.importorskip("PIL", reason="pillow is not installed")
    rows = zlib.compress(bytes(20_001 * 20_000), 9)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert "20000 x 20000 samples" in refused(content)


@pytest.mark.parametrize(
    "content",
    [
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 100000 100000 100\nencoding: raw\n\n" + bytes(64),
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 4 4 1e300\nencoding: raw\n\n" + bytes(64),
        b"NRRD0004\ntype: double\ndimension: 2\nsizes: 4 -4\nencoding: raw\n\n" + bytes(64),
        b"NRRD0004\n" + b"# nothing\n" * 200_000,
        b"ObjectType = Image\nNDims = 3\nDimSize = 9999999 9999999 9\nElementType = MET_DOUBLE\n"
        b"ElementDataFile = LOCAL\n",
        b"0       " + b" " * 244 + b"9999" + bytes(300),
        b"0       " + b" " * 244 + b"nan " + bytes(300),
    ],
    ids=["size", "huge number", "negative", "endless header", "mha", "signals", "no number"],
)
def test_headers_that_ask_for_too_much_are_refused(content: bytes) -> None:
    refused(content, DhcError)


def test_limits_are_the_callers() -> None:
    with pytest.raises(ResourceError, match="more than the 100 allowed"):
        check_declared((20, 20), np.uint8, Limits(plane=100), "x")
    with pytest.raises(ResourceError, match="read a region"):
        check_declared((10, 5, 5), np.uint8, Limits(values=100), "x")
    with pytest.raises(ModelError, match="declares an image of 0 x 4"):
        check_declared((0, 4), np.uint8, Limits(), "x")


def small_png() -> bytes:
    stream = streams.BytesIO()
    io.write(Image(np.arange(30, dtype=np.uint8).reshape(5, 6)), stream, suffix=".png")
    return stream.getvalue()


class Worker:
    """A decoder whose process runs other code than the worker's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        popen = sandbox.subprocess.Popen

        def start(command: list[str], **options: object) -> object:
            program = command[-1].replace("main(", f"import dhc.ecvl_ops.io.worker as w\n{code}\nw.main(")
            program = program.replace("from dhc.ecvl_ops.io.worker import main; ", "")
            return popen([*command[:-1], program], **options)

        monkeypatch.setattr(sandbox.subprocess, "Popen", start)
        self.decoder = sandbox.Decoder()

    def read(self, seconds: float = 20) -> Image:
        limits = Limits(seconds=seconds)
        return self.decoder.read(sandbox.Source("bad.png", content=small_png()), limits, wire.Request())


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("w._answer = lambda *a: __import__('os').abort()", ModelError, "SIGABRT"),
        ("w._answer = lambda *a: __import__('os').kill(__import__('os').getpid(), 9)", ResourceError, "memory"),
        ("w._answer = lambda *a: __import__('os')._exit(3)", ModelError, "damaged or hostile"),
        ("w._answer = lambda *a: bytearray(1 << 45)", ResourceError, "memory"),
        ("w.wire.send = lambda c, *a: c.sendall(b'x' * 100)", ModelError, "damaged or hostile"),
        ("w._answer = lambda *a: ({'image': {'dtype': 'object', 'shape': [1]}}, b'12345678')", ModelError, "hostile"),
        ("w._answer = lambda *a: ({'image': {'dtype': 'uint8', 'shape': [9]}}, b'12345678')", ModelError, "hostile"),
    ],
    ids=["crash", "killed", "exit", "memory", "noise", "objects", "wrong size"],
)
def test_a_decoder_that_fails_costs_one_file(monkeypatch, code: str, kind: type, text: str) -> None:
    worker = Worker(monkeypatch, code)
    with pytest.raises(kind, match=text):
        worker.read()
    monkeypatch.undo()
    worker.decoder.close()
    assert worker.read().values.shape == (5, 6)
    worker.decoder.close()


def test_a_decoder_that_hangs_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "_START_SECONDS", 1.0)
    worker = Worker(monkeypatch, "w._answer = lambda *a: __import__('time').sleep(1000)")
    with pytest.raises(ResourceError, match=r"took longer than 0\.5 s"):
        worker.read(0.5)
    worker.decoder.close()


def test_a_decoder_that_computes_for_ever_is_ended(monkeypatch) -> None:
    worker = Worker(
        monkeypatch, "def loop(*a):\n    w._bound(w.Limits(seconds=0))\n    while True: pass\nw._answer = loop"
    )
    with pytest.raises(ResourceError, match="took longer"):
        worker.read()
    worker.decoder.close()


def test_a_confined_process_cannot_write_files(monkeypatch, tmp_path: Path) -> None:
    target = tmp_path / "written"
    code = f"def attempt(*a):\n    open({str(target)!r}, 'wb').write(b'x' * 10000)\n    return {{}}, b''\n"
    code += "w._answer = attempt"
    worker = Worker(monkeypatch, code)
    with pytest.raises(DhcError):
        worker.read()
    assert not target.exists() or target.stat().st_size == 0
    worker.decoder.close()


def test_errors_travel_whole() -> None:
    for error in (
        ModelError("a", "b", "c"),
        ResourceError("a", 1, "b", "c"),
        KeyError("k"),
        MemoryError(),
    ):
        found = wire.parse_error(wire.error_fields(error))
        if isinstance(error, (ModelError, ResourceError)):
            assert type(found) is type(error) and str(found) == str(error)
    from dhc.errors import MissingExtraError

    missing = wire.parse_error(wire.error_fields(MissingExtraError("imaging", "this")))
    assert isinstance(missing, MissingExtraError) and "pip install 'dhc[imaging]'" in str(missing)


def test_frames_of_another_size_than_the_file_says_are_refused() -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for name, at in (("JPEG2000.dcm", b"\xff\x4f\xff\x51"), ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xd8\xff\xf7")):
        content = bytearray((folder / name).read_bytes())
        start = content.index(at)
        # The number of columns, or of rows: high bytes.
        content[start + (9 if at[1] == 0x4F else 7)] = 0x7F
        assert "and the file" in refused(bytes(content), ModelError)
