"""Errors say what, where, and what to do; they survive pickling, as between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from dhc_runtime import errors


def test_text_is_one_paragraph_of_what_where_and_hint() -> None:
    error = errors.DhcError("The shapes do not fit", where="node conv1", hint="Give 3 channels")
    assert str(error) == "The shapes do not fit (at node conv1). Give 3 channels."


def test_parts_are_optional() -> None:
    assert str(errors.DhcError("Broken.")) == "Broken."
    assert str(errors.DhcError("Broken", hint="Mend it!")) == "Broken. Mend it!"


def test_exit_codes_are_those_of_the_documentation() -> None:
    codes = {
        errors.DhcError: 1,
        errors.UsageError: 2,
        errors.ModelError: 3,
        errors.ShapeError: 3,
        errors.TypeMismatchError: 3,
        errors.ParseError: 3,
        errors.VerifyError: 3,
        errors.UnsupportedError: 4,
        errors.CompileError: 5,
        errors.ArtifactError: 6,
        errors.DeviceError: 7,
        errors.MissingExtraError: 7,
        errors.ResourceError: 8,
    }
    assert {cls: cls.exit_code for cls in codes} == codes
    assert set(errors.__all__) == {cls.__name__ for cls in codes}


def test_parse_error_draws_a_caret_under_the_column() -> None:
    error = errors.ParseError("Unknown op", line=3, column=6, source="\t%a = foo", where="model.txt")
    assert str(error).splitlines() == ["Unknown op (at model.txt, line 3, column 6).", "\t%a = foo", "\t    ^"]
    assert str(errors.ParseError("Unknown op", line=3)) == "Unknown op (at line 3)."


def test_unsupported_lists_every_problem() -> None:
    error = errors.UnsupportedError("2 nodes are not supported", ["Foo at n1", "Bar at n2"], hint="Use opset 13")
    assert str(error).splitlines()[1:] == ["  - Foo at n1", "  - Bar at n2"]
    assert isinstance(error, errors.ModelError)


def test_missing_extra_names_the_command() -> None:
    assert "pip install 'dhc[imaging]'" in str(errors.MissingExtraError("imaging", "Reading DICOM"))


@pytest.mark.parametrize(
    "error",
    [
        errors.DhcError("a", "b", "c"),
        errors.ParseError("a", 1, 2, "text", "file", "hint"),
        errors.UnsupportedError("a", ["x"], "w", "h"),
        errors.MissingExtraError("demo", "It"),
        errors.ResourceError("a", 5),
    ],
)
def test_pickle_and_copy_keep_everything(error: errors.DhcError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.__dict__ == error.__dict__
