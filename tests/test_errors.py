"""Every error message on one page, docs/errors.md, as the tests provoke them; `python tests/test_errors.py` writes it.

A table of bad input in a test file is a dict `BAD` of name: (call, error, texts). What JAX says itself, and where an
object lies in memory, differs from version to version and from run to run, and is left out of the page.
"""

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
INTRODUCTION = """# Error messages

What each wrong input is answered with, as the tests provoke it; `python tests/test_errors.py` writes this page. A
message says where, what was expected, and what was got. Text that comes from JAX itself is shown as `[...]`.
"""
FROM_JAX = re.compile(r"(the function fails on x of shape \(.*?\): |cannot transpose \(\w+: ).*", re.DOTALL)


def sections():
    """(title, {case: (error, message)}) of each test file with a table of bad input."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if "\nBAD = {" in path.read_text():
            module = importlib.import_module(path.stem)
            yield module.__doc__.split("\n")[0], {name: message(call) for name, (call, *_) in module.BAD.items()}


def message(call):
    try:
        call()
    except Exception as error:
        text = FROM_JAX.sub(r"\1[...]", str(error.args[0] if error.args else error))
        return type(error).__name__, re.sub(r" at 0x[0-9a-f]+", "", text).strip()
    raise AssertionError("no error was raised")


def page():
    parts = [INTRODUCTION]
    for title, messages in sections():
        parts.append(f"\n## {title}\n")
        for name, (error, text) in messages.items():
            body = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
            parts.append(f"\n{name}: {error}\n\n{body}\n")
    return "".join(parts)


def test_the_page_is_what_is_said():
    assert PAGE.read_text() == page(), "python tests/test_errors.py writes the page anew"


if __name__ == "__main__":
    import conftest  # noqa: F401  (the tests' numerics)

    PAGE.write_text(page())
    print(page())
