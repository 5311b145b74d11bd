"""What Griffe, which reads the docstrings for the reference, has to be told about this package.

Doctests stand in the docstrings' text, where Markdown would take `>>>` for quotations; and dataclasses are made by
`ffn_jax._pytree.pytree_dataclass`, whose fields `static(...)` are `dataclasses.field(...)`.
"""

import re

import griffe

DOCTEST = re.compile(r"(?m)^(?P<indent> *)>>> .*\n?(?:(?P=indent)\S.*\n?)*")


class DocsExtension(griffe.Extension):
    """Fences doctests, and shows the constructors of our dataclasses."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every object once the package is loaded."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(_fenced, obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: object) -> None:
        """Called for every class as it is read, before Griffe makes the constructors of dataclasses."""
        if not any(str(decorator.value) == "pytree_dataclass" for decorator in cls.decorators):
            return
        cls.decorators.append(griffe.Decorator(griffe.ExprName("dataclasses.dataclass"), lineno=None, endlineno=None))
        for member in cls.members.values():
            value = getattr(member, "value", None)
            if isinstance(value, griffe.ExprCall) and str(value.function) == "static":
                value.function = griffe.ExprName("dataclasses.field")
                if not value.arguments:  # a required argument
                    member.value = None


def _fenced(block: re.Match[str]) -> str:
    indent = block["indent"]
    return f"{indent}```pycon\n{block[0].rstrip()}\n{indent}```\n"
