"""Write docs/python-api.md from the docstrings of the package's public names: python docs/make_api.py"""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent / "code"
MODULES = re.compile(r"\b(imagenet_biases(\.\w+)*|collections\.abc|pathlib|typing|jaxtyping)\.(?=\w)")
PAGE = Path(__file__).with_name("python-api.md")
HEAD = """# Python API

Everything that `imagenet_biases` exports. This page is generated from the docstrings by `python docs/make_api.py`.
"""


def document(name, thing):
    """Return the section of one public name: its signature, its docstring, and those of its public methods."""
    lines = [f"## `{name}`", "", "```python", signature(name, thing), "```", "", text(thing)]
    if not inspect.isclass(thing):
        return lines
    for method, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))
        if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        head = method if isinstance(member, property) else signature(method, function)
        lines += ["", f"### `{name}.{head}`" if "\n" not in head else f"### `{name}.{method}`", "", text(function)]
    return lines


def signature(name, thing):
    """Return a call's text, one parameter per line where it does not fit into a single one."""
    try:
        call = inspect.signature(thing)
    except ValueError:
        return name
    parameters = [parameter for parameter in call.parameters.values() if parameter.name != "self"]
    if dataclasses.is_dataclass(thing):
        made = {field.name for field in dataclasses.fields(thing) if field.default_factory is not dataclasses.MISSING}
        parameters = [one.replace(default=...) if one.name in made else one for one in parameters]
    result = "" if inspect.isclass(thing) or call.return_annotation is call.empty else call.return_annotation
    call = call.replace(parameters=parameters, return_annotation=call.empty)
    arrow = f" -> {plain(result)}" if result != "" else ""
    short = f"{name}{plain(call)}{arrow}"
    if len(short) <= 110:
        return short
    lines, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,\n")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        lines.append(f"    {plain(parameter)},\n")
    return f"{name}(\n{''.join(lines)}){arrow}"


def plain(annotation):
    """Return the text of a signature or annotation without modules, addresses and other marks of Python's."""
    words = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    words = re.sub(r"<(?:class|function|factory) '?([\w.]+)'?[^>]*>", r"\1", words.replace("Ellipsis", "..."))
    words = re.sub(r"(\w+\(name='[^']*'), [^()]*\)", r"\1, ...)", words)
    return MODULES.sub("", words).replace("torch.nn.modules.module.", "torch.nn.")


def text(thing):
    """Return a docstring as Markdown: its sections (Args, Returns, Raises) become lists."""
    lines, section = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises):", line):
            section = True
            lines += ["", f"**{line[:-1]}**", ""] if lines and lines[-1] else [f"**{line[:-1]}**", ""]
        elif section and re.match(r"    \S", line):
            lines.append("- " + re.sub(r"^(\*{0,2}\w+)(?=:| \()", r"`\1`", line.strip()))
        elif section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines)


def page():
    """Return the whole page."""
    import imagenet_biases

    lines = [HEAD]
    for name in imagenet_biases.__all__:
        lines += [*document(name, getattr(imagenet_biases, name)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(CODE))
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
