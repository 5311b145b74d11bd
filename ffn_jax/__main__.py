"""`python -m ffn_jax [command]`: without a command, the main job on real weights."""

import difflib
import importlib
import sys
from collections.abc import Sequence

# name -> (module with main(argv) -> exit code, what it does); imported when called.
COMMANDS = {
    "job": ("ffn_jax.demo.job", "run and check MiniLM's feed-forward sublayers (the default)"),
    "embed": ("ffn_jax.demo.embed", "embed sentences with the whole MiniLM encoder, and show how similar they are"),
    "check": ("ffn_jax.verify._cli", "check a derivative rule or a linear map of your own, with derived tolerances"),
    "prove": ("ffn_jax.verify.symbolic._cli", "prove every rule that the package ships, or one of your own"),
}
DEFAULT = "job"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names and returns its exit code: 0 good, 1 a check failed, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else DEFAULT
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"ffn_jax: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return int(importlib.import_module(COMMANDS[name][0]).main(arguments))


def usage() -> str:
    """The text of `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m ffn_jax [command] [options]",
            "",
            *lines,
            "",
            "python -m ffn_jax COMMAND --help lists the options of one.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
