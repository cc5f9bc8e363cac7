"""Hook of mkdocs: pages of the site that come from README.md and from the code, and links out of `docs/`.

- `index.md` is README.md.
- `reference/commands.md` is made from the typer application, `reference/configuration.md` from the models of the
  configuration and the comments next to their keys, `reference/python.md` from the names of `distill.__all__`.
- A link to a file of the repository outside `docs/` becomes the file's name, because the site does not hold it.
"""

from __future__ import annotations

import inspect
import io
import posixpath
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)]*)\)")
_FROM_ROOT = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "index.md": first_page((ROOT / "README.md").read_text(encoding="utf-8")),
        "reference/commands.md": commands_page(),
        "reference/configuration.md": configuration_page(),
        "reference/python.md": python_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Resolve links that leave `docs/`."""
    return outside_links(markdown, page.file.src_uri)


def first_page(readme: str) -> str:
    """Convert README.md, whose links start at the root of the repository, to a page of `docs/`."""

    def moved(match: re.Match[str]) -> str:
        target = match[1]
        return f"]({target.removeprefix('docs/')})" if target.startswith("docs/") else f"](../{target})"

    return _FROM_ROOT.sub(moved, readme)


def outside_links(markdown: str, page: str = "index.md") -> str:
    """Replace links to files outside `docs/`: README.md by the first page, other files by their name as text.

    Args:
        markdown: of the page.
        page: its path in `docs/`.
    """
    folder = posixpath.dirname(page)

    def replaced(match: re.Match[str]) -> str:
        words, (target, _, anchor) = match[1], match[2].partition("#")
        name = posixpath.normpath(posixpath.join(folder, target))
        if not name.startswith("../"):
            return match[0]
        name = name.removeprefix("../")
        if name == "README.md":
            first = posixpath.relpath("index.md", folder or ".")
            return f"[{words}]({first}{'#' + anchor if anchor else ''})"
        return words if name in words else f"{words} (`{name}`)"

    return _LINK.sub(replaced, markdown)


def commands_page() -> str:
    """Describe every command of the command line with its arguments and options."""
    import typer

    from distill.cli import app

    lines = ["# Command line", "", "Generated from the commands; `distill COMMAND --help` prints the same.", ""]
    for name, command in sorted(_commands(typer.main.get_command(app), "distill")):
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## {name.removeprefix('distill ')}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["```text", f"{name} {usage}", "```", ""]
        rows = [row for one in command.get_params(context) if (row := _parameter(one, context)) is not None]
        lines += ["| argument or option | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for inner, one in command.commands.items():
            if not one.hidden:
                yield from _commands(one, f"{name} {inner}")
    else:
        yield name, command


def _parameter(parameter: Any, context: Any) -> str | None:
    """Format a row as `--help` has it; None for what it does not show."""
    record = parameter.get_help_record(context)
    return None if record is None else f"| `{_line(record[0])}` | {_cell(record[1])} |"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _cell(text: str) -> str:
    """Format text for a table; bars inside of backquotes do not end a cell."""
    parts = _line(text).split("`")
    return "`".join(part if at % 2 else part.replace("|", "\\|") for at, part in enumerate(parts))


def configuration_page() -> str:
    """Describe every key of teacher.yaml and student.yaml."""
    from distill.config import StudentConfig, TeacherConfig

    lines = ["# Configuration", "", "Keys of the two files, with their defaults; generated from the models that check"]
    lines += ["them. Nested keys are written with dots on the command line, such as `student.training.steps=2000`.", ""]
    for file, model in (("teacher.yaml", TeacherConfig), ("student.yaml", StudentConfig)):
        lines += [f"## {file}", ""]
        for prefix, group in _groups(model, ""):
            lines += [f"### {file.removesuffix('.yaml')}{'.' + prefix.rstrip('.') if prefix else ''}", ""]
            lines += [inspect.cleandoc(group.__doc__ or ""), "", "| key | type | default | meaning |"]
            lines += ["| --- | --- | --- | --- |", *_keys(group, prefix), ""]
    return "\n".join(lines)


def _groups(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Iterate over a model and the models of its keys."""
    yield prefix, model
    for name, field in model.model_fields.items():
        inner, many = _model_of(field.annotation)
        if inner is not None:
            yield from _groups(inner, f"{prefix}{name}.{'N.' if many else ''}")


def _model_of(annotation: Any) -> tuple[Any, bool]:
    """Return the model of a key, and whether the key holds a list of them."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, True
    return None, False


def _keys(model: Any, prefix: str) -> Iterator[str]:
    """Format the keys of a model that are no groups themselves."""
    from pydantic_core import PydanticUndefined

    comments = {name: text for base in reversed(model.__mro__) for name, text in _comments(base).items()}
    for name, field in model.model_fields.items():
        if _model_of(field.annotation)[0] is not None and not _model_of(field.annotation)[1]:
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_yaml(field.default)}`"
        bounds = ", ".join(_bound(one) for one in field.metadata)
        kind = _type(field.annotation) + (f", {bounds}" if bounds else "")
        yield f"| `{name}` | {_cell(kind)} | {default} | {_cell(comments.get(name, ''))} |"


def _comments(model: type) -> dict[str, str]:
    """Return the comments at the end of the lines that define a model's keys."""
    if model is object or not model.__module__.startswith("distill."):
        return {}
    found = {}
    key: str | None = None
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(model)).readline):
        if match := re.match(r"    (\w+): ", token.line):
            key = match[1]
        if token.type == tokenize.COMMENT and key is not None and token.line.strip() != token.string:
            found[key] = token.string.lstrip("# ")
    return found


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "none").replace("None", "none")
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), text)
    return f"`{text}`"


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value) or '""')


def _bound(one: Any) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "multiple of"}
    signs |= {"min_length": "entries:"}
    return ", ".join(f"{word} {getattr(one, name):g}" for name, word in signs.items() if hasattr(one, name))


def python_page() -> str:
    """List the names of `distill`, for mkdocstrings."""
    import distill

    lines = ["# Python reference", ""]
    lines += ["The names of `distill`; [Python interface](../how-to/python.md) shows their use.", ""]
    for name in distill.__all__:
        lines += [f"::: distill.{name}", ""]
    return "\n".join(lines)
