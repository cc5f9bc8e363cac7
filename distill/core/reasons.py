"""Say why a file cannot be read or written, in words of the file and the system, not of the library that failed."""

from __future__ import annotations

import json
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from distill.core.errors import DistillError, SourceError

# What the libraries of the readers were seen to raise on truncated and altered files.
UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, SyntaxError, AttributeError),
    *(ArithmeticError, MemoryError, BufferError, AssertionError, struct.error, zlib.error, zipfile.BadZipFile),
    *(tokenize.TokenError, NotImplementedError),
)
_DETAILS = re.compile(r" \[(?:tensorstore_spec|http_response|curl_code|HTTP code)")
_REFUSED = re.compile(r"\[os_error_code='(\d+)'\]")  # by tensorstore
_SHORT = re.compile(r"(\d+) requested and (\d+) written")  # by NumPy
_MEMBER = re.compile(r'Error parsing object member "([^"]*)": |Error parsing value at position (\d+): ')
_PREFIX = re.compile(r'(?:[A-Z_]+: )?(?:Error opening "[^"]*" driver: |Error reading [^:]*"[^"]*": )*')
_ASKED = re.compile(r"(?:[Tt]ried|Unable) to allocate (\d+(?:\.\d+)?)\.? ?([KMGTP]i?B|bytes)")
_LONG = 60  # characters
_STATUS = re.compile(r"([A-Z_]{5,}): Unknown\b(?:.*http_response_code='(\d+)')?", re.DOTALL)
_STATES = {  # of a server, by tensorstore
    "PERMISSION_DENIED": "access denied",
    "UNAUTHENTICATED": "access denied without credentials",
    "NOT_FOUND": "not found",
    "UNAVAILABLE": "the server is not available",
    "DEADLINE_EXCEEDED": "the server did not answer in time",
    "RESOURCE_EXHAUSTED": "the server refuses more requests",
}
_UNKNOWN = "damaged, or of a form that is not known"
_OTHERS = (  # messages of libraries, and what they mean
    (r"^(?:[A-Z_]{5,}: )?Error reading (?:local file )?\"([^\"]*)\": ", r"\1: "),
    (r"^not a TIFF file\b.*", "not a TIFF file"),
    (r"^\w+ returned \w+$|^Error -\d+ while decompressing.*", "its packed data are damaged"),
    (r"^.*(?:contains pickled|Object arrays cannot be loaded).*", "it holds objects of Python, expected numbers"),
    (r"^mmap length is greater than file size.*", "the file is cut off"),
    (r"^No data left in file.*", "the file is empty"),
    (r"^(?:Can't|Unable to|Unspecified|Object|Special|Link|Could not)\b.*\((.+)\)$", r"its structure is damaged: \1"),
    (r"^Error while deserializing header: ", ""),
    (r"^[A-Z_]{5,}: ", ""),
)
_INSIDE = re.compile(  # messages about values inside a program, which say nothing to who has the file
    r"invalid literal|could not convert|malformed node|not enough values|too many values|broadcast|cannot reshape|"
    r"object at 0x|NoneType|takes \d|__\w+__|dtype|expected str, bytes|iterable|subscript|buffer|unpack|"
    r"modulo by zero|zip\(\)|reshaped|"
    r"^'[^']*'$|^\d+$|ascii|descr|not understood|codec can|is not defined|f-string|unexpected EOF|invalid syntax"
)


def reason(error: BaseException) -> str:
    """Say in one line what went wrong; where the system refused, in the system's words."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"found byte 0x{error.object[error.start]:02x} at {error.start}, expected text in UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg.removesuffix(' at')} in line {error.lineno}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "its metadata are nested too deep"
    if isinstance(error, MemoryError):
        return "it takes more memory than is free"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {' '.join(text.split())}"
    if (short := _SHORT.match(text)) is not None:
        return f"{int(short[2]):,} of {int(short[1]):,} numbers fitted: the disk is full, or a limit is reached"
    if (refused := _REFUSED.search(text)) is not None:
        return os.strerror(int(refused[1]))
    if (status := _STATUS.match(text)) is not None:
        state = _STATES.get(status[1], "the server refused")
        return f"{state} (HTTP {status[2]})" if status[2] else state
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return str(error.strerror)
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]!r}" if error.args and isinstance(error.args[0], str) else _UNKNOWN
    if isinstance(error, zlib.error):
        return "its packed data are damaged"
    if isinstance(error, AttributeError | TypeError | IndexError | SyntaxError | tokenize.TokenError | struct.error):
        return _UNKNOWN
    lines = _DETAILS.split(text, maxsplit=1)[0].strip().splitlines()
    line = _of_metadata(lines[0]) if lines else _UNKNOWN
    for pattern, meaning in _OTHERS:
        line = re.sub(pattern, meaning, line, count=1)
    return _UNKNOWN if _INSIDE.search(line) else line


def too_large(error: BaseException) -> str | None:
    """Say that memory was short, of the host or of a GPU, in one line; None for any other error."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "CUBLAS_STATUS_ALLOC_FAILED" in text:  # of torch, on a GPU
        where = "the GPU"
    elif isinstance(error, MemoryError) or "can't allocate memory" in text:  # of Python and NumPy, and of torch
        where = "this machine"
    else:
        return None
    asked = _ASKED.search(text)
    return f"{where} is out of memory{f': {asked[1]} {asked[2]} more were asked for' if asked else ''}"


def _of_metadata(line: str) -> str:
    """Return tensorstore's message about a JSON document without the path to it."""
    members = [name or number for name, number in _MEMBER.findall(line)]
    if not members:
        return line
    last = _MEMBER.sub("", _PREFIX.sub("", line, count=1)).strip()
    return f"{'.'.join(members)}: {last}"


@contextmanager
def readable(name: object) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into one `SourceError` that names the file and the reason."""
    try:
        yield
    except DistillError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{name}: no such file") from error
    except (*UNREADABLE, yaml.YAMLError) as error:
        raise SourceError(f"{name}: cannot be read: {reason(error)}") from error


def parse_json(name: object, text: str) -> Any:
    """Parse a JSON document.

    Args:
        name: of the file, for messages.
        text: its content.

    Raises:
        SourceError: it is no JSON.
    """
    with readable(name):
        return json.loads(text)


def json_object(name: object, text: str) -> dict[str, Any]:
    """Parse a JSON document that is an object.

    Raises:
        SourceError: it is no JSON, or something else.
    """
    found = parse_json(name, text)
    if not isinstance(found, dict):
        raise SourceError(f"{name}: found {json_kind(found)}, expected a JSON object")
    return found


def json_kind(value: Any) -> str:
    """Name the kind of a JSON or YAML value."""
    if value is None:
        return "nothing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "something else")


def shown(value: Any) -> str:
    """Write a value of a file for a message, in one line that is not long."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            text = json_kind(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        SourceError: it is not there, cannot be read, or holds no text.
    """
    with readable(path):
        return path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        SourceError: it is not there, cannot be read, is no YAML, or gives a key twice.
    """
    with readable(path):
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which the plain loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name is not None and name[1] != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"found key {name[1]!r} twice", key.start_mark)
            seen.add(name)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found
