"""Why a file cannot be read, in words that do not name the library that failed."""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path

import pytest
import yaml

from distill.core.errors import SourceError
from distill.core.reasons import json_object, read_yaml, readable, reason, shown


def raised(code: str) -> Exception:
    try:
        exec(code)
    except (ValueError, LookupError, AttributeError, ArithmeticError, yaml.YAMLError, zlib.error) as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (raised("b'ab\\x87'.decode()"), "found byte 0x87 at 2, expected text in UTF-8"),
        (raised("import json; json.loads('{')"), "not valid JSON: Expecting property name"),
        (raised("import yaml; yaml.safe_load('a: [')"), "not valid YAML: "),
        (raised("{}['key']"), "it lacks 'key'"),
        (raised("[].upper()"), "damaged, or of a form that is not known"),
        (raised("int('x')"), "damaged, or of a form that is not known"),
        (raised("1 // 0"), "damaged, or of a form that is not known"),
        (raised("import zlib; zlib.decompress(b'x')"), "its packed data are damaged"),
        (ValueError("PERMISSION_DENIED: Unknown [http_response_code='403']"), "access denied (HTTP 403)"),
        (ValueError("DATA_LOSS: Unknown"), "the server refused"),
        (MemoryError(), "it takes more memory than is free"),
        (OSError(errno.EISDIR, os.strerror(errno.EISDIR), "a.yaml"), "Is a directory"),
        (OSError("40000 requested and 19632 written"), "the disk is full"),
        (ValueError("X [os_error_code='28'] [tensorstore_spec='..."), "No space left on device"),
        (
            ValueError('DATA_LOSS: Error reading local file "/a/0.0": inflate() failed [tensorstore_spec=1'),
            "/a/0.0: inflate() failed",
        ),
        (
            ValueError(
                'FAILED_PRECONDITION: Error opening "zarr3" driver: Error reading local file "/a/zarr.json": Error '
                'parsing object member "codecs": Error parsing value at position 0: Expected object'
            ),
            "codecs.0: Expected object",
        ),
        (ValueError("not a TIFF file: header=b'<!DO'"), "not a TIFF file"),
        (OSError("Can't synchronously read data (filter returned failure)"), "its structure is damaged: filter"),
    ],
)
def test_words(error: Exception, says: str) -> None:
    found = reason(error)
    assert found.startswith(says) or says in found
    assert "\n" not in found
    with pytest.raises(SourceError) as stop, readable("file"):
        raise error
    assert str(stop.value) == f"file: cannot be read: {found}"


def test_documents(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^f: found a list, expected a JSON object$"):
        json_object("f", "[1]")
    with pytest.raises(SourceError, match="nested too deep"):
        json_object("f", "[" * 100_000)
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(SourceError, match=r"a\.yaml: cannot be read: found byte 0xff at 0"):
        read_yaml(path)
    path.write_text(yaml.safe_dump({"a": 1}))
    assert read_yaml(path) == {"a": 1}
    assert shown("x" * 100) == f"'{'x' * 59}..."
    assert shown({"a": json, "b": zlib}).startswith('{"a": ')
