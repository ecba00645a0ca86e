"""What the command lines share: flags from their description, help, mistakes, exit statuses."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.cli import usage
from experiments.process import folders, streams
from experiments.process.mistakes import (
    EXIT_INTERRUPTED,
    EXIT_UNWRITTEN,
    EXIT_USAGE,
    UNWRITABLE,
    UnwrittenError,
    UsageError,
)

# What is accepted of the kinds of flags of which absl does not say it.
ACCEPTED = {
    "int": "accepted is an integer",
    "float": "accepted is a number",
    "bool": "accepted are true and false",
}

# How JAX, PyTorch and the system say that there is not enough memory.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "can't allocate memory")


class _Several(flags.ArgumentParser):
    """Comma-separated values of one kind."""

    def __init__(self, kind: type, name: str, example: str) -> None:
        self._kind, self._name, self._example = kind, name, example

    def parse(self, argument: str) -> tuple[Any, ...]:
        """The values in a text."""
        parts = argument.split(",") if argument.strip() else []
        try:
            return tuple(self._kind(part) for part in parts)
        except ValueError:
            raise ValueError(f"accepted are {self.flag_type()}, such as {self._example}") from None

    def flag_type(self) -> str:
        """What is accepted, in words."""
        return f"{self._name} separated by commas"


class _Choice(flags.EnumParser):
    """One of some names."""

    def parse(self, argument: str) -> str:
        """The name; the nearest one is suggested in place of another."""
        if argument not in self.enum_values:
            suggestion = usage.nearest(argument, self.enum_values)
            accepted = ", ".join(self.enum_values)
            raise ValueError(f"unknown; {suggestion}accepted are {accepted}")
        return argument


def _parser(flag: usage.Flag) -> flags.ArgumentParser:
    match flag.kind:
        case "integer":
            return flags.IntegerParser()
        case "number":
            return flags.FloatParser()
        case "integers":
            return _Several(int, "integers", "2,5,10")
        case "numbers":
            return _Several(float, "numbers", "0.1,0.05,0.01")
        case "texts":
            return _Several(str, "names", flag.value)
        case "choice":
            return _Choice(list(flag.choices))
        case _:
            return flags.ArgumentParser()


def define(groups: Iterable[usage.Group], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that are described; what is not given is None."""
    for flag in (flag for group in groups for flag in group.flags):
        if flag.kind == "switch":
            flags.DEFINE_boolean(flag.name, None, flag.meaning, values)
            continue
        several = flag.kind in ("integers", "numbers", "texts")
        flags.DEFINE(
            _parser(flag),
            flag.name,
            None,
            flag.meaning,
            flag_values=values,
            serializer=flags.CsvListSerializer(",") if several else None,
        )


def given(groups: Iterable[usage.Group], values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The values of those flags alone that were given."""
    names = (flag.name for group in groups for flag in group.flags)
    return {name: values[name].value for name in names if values[name].value is not None}


def start(page: usage.Page, main: Callable[[Sequence[str]], int]) -> None:
    """Shows help, or parses the flags and ends the program with the status of its main function."""
    if any(argument in usage.HELP for argument in sys.argv[1:]):
        usage.show(page)
        sys.exit(0)
    define(page.groups)
    app.run(main, flags_parser=parse_flags)


def exit_status(argv: Sequence[str], program: Callable[[], int]) -> int:
    """Runs a program; a mistake of the user's, or an interrupt, is one line and a status."""
    try:
        if len(argv) > 1:
            raise UsageError(f"{argv[1]}: not a flag; accepted are flags such as --ratios=2,5,10")
        return program()
    except UsageError as error:
        return fail(str(error))
    except UnwrittenError as error:
        return fail(str(error), EXIT_UNWRITTEN)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        return fail(f"{error.filename or 'results'}: {error.strerror}", EXIT_UNWRITTEN)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        return fail(f"memory: too little for this run ({_begun(error)}); take a smaller one")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        streams.close()
        folders.unlock()


def lacks_memory(error: Exception) -> bool:
    """Whether that is what an error says."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _begun(error: Exception) -> str:
    """The first words of an error, which may be pages of allocations."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def fail(message: str, status: int = EXIT_USAGE) -> int:
    """Shows what is wrong in one line."""
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    return status


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses flags; a mistake ends the program with one line."""
    try:
        arguments = values(argv)
    except (flags.Error, ValueError) as error:  # absl's own flags raise the latter
        sys.exit(fail(_in_words(error, values)))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # which backends JAX looked for is no news
    return arguments


def _in_words(error: Exception, values: flags.FlagValues) -> str:
    """What is wrong with a flag, in one line that names it and says what is accepted."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown(error, values)
    line = " ".join(str(error).split()).removeprefix("ERROR:: ")
    refused = re.match(r"flag (--(\w+)=[^:]*)", line)
    if refused is None:
        return f"{line}; --help lists what is accepted"
    flag, name = refused.groups()
    accepted = ACCEPTED.get(values[name].flag_type()) if name in values else None
    return f"{flag}: {accepted}" if accepted else line.removeprefix("flag ")


def _unknown(error: flags.UnrecognizedFlagError, values: flags.FlagValues) -> str:
    """That there is no such flag, and the nearest one there is."""
    names = {name for name in values if len(name) > 1}
    switches = {f"no{name}" for name in names if values[name].boolean}
    given = error.flagvalue or f"--{error.flagname}"  # absl has the whole argument as its value
    suggestion = usage.nearest(error.flagname, sorted(names | switches), "--")
    return f"{given}: unknown flag; {suggestion}--help lists what is accepted"
