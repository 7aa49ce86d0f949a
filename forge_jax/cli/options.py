"""The options that commands share: which model, how tokens are chosen. Checks what argparse cannot."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forge_jax.generation.speculation import Drafter
    from forge_jax.loading import Model
    from forge_jax.quantization.swift import Kernels
    from forge_jax.sampling import Constraint, SamplingParams

DEFAULT_MODEL = "smollm2"
DTYPES = ("auto", "stored", "float32", "bfloat16", "float16")
SINKS = 4  # as `forge_jax.loading.load` has it, which is not imported yet when a command line is read
KERNELS = ("auto", "plain", "exact", "rounded")
KERNELS_HELP = (
    "how a CPU multiplies: rounded (what meets weights with a scale for every 32 is rounded to int8, as in llama.cpp), "
    "exact (in float32, weights of 16 bits as they are), plain (no layout for kernels); auto: rounded, if it can"
)
CACHE_HELP = "how keys and values are kept: float32, bfloat16, float16, int8, fp8, k8v4, int4, int2 (as weights are)"

Commands = Any  # what argparse's add_subparsers gives; it has no public type


@dataclass(frozen=True)
class Setting:
    """One number that decides how text is made, on the command line and in a chat's /set."""

    read: Callable[[str], int | float]
    default: int | float | None
    help: str


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "max-new-tokens": Setting(int, 256, "end after this many new tokens (256)"),
        "temperature": Setting(float, 0.0, "0 takes the best token (default); 0.7 varies, 1 is the model's own"),
        "top-k": Setting(int, None, "choose among the K best tokens"),
        "top-p": Setting(float, None, "choose among the best tokens that hold this share of probability"),
        "min-p": Setting(float, None, "leave out tokens less probable than this share of the best one's"),
        "repetition-penalty": Setting(float, 1.0, "above 1: avoid tokens that were there before"),
        "seed": Setting(int, 0, "another number, another text (with a temperature)"),
    }
)
NEED_TEMPERATURE = ("top-k", "top-p", "min-p")


def command(commands: Commands, name: str, run: Callable[..., int], help: str, example: str) -> argparse.ArgumentParser:
    """A new command with its example and the option that all have."""
    out = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--debug", action="store_true", help="show where an error came from")
    out.set_defaults(run=run)
    return out


def add_source(parser: argparse.ArgumentParser) -> None:
    """Where in a directory or repository the model is, and what may stay unread."""
    group = parser.add_argument_group("where the model is")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--subfolder", help="directory inside the repository or directory")
    group.add_argument("--file", help="file inside it, or a GGUF type such as Q4_K_M")
    group.add_argument(
        "--allow", action="append", default=[], metavar="KEY", help="a config key that may stay unread; repeatable"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Everything about the model of a command that makes text."""
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=f"the model ({DEFAULT_MODEL})")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (auto: float32 on a CPU)")
    parser.add_argument("--kernels", choices=KERNELS, default="auto", help=KERNELS_HELP)
    parser.add_argument("--adapter", type=Path, metavar="PATH", help="put a PEFT directory or a GGUF adapter beside it")
    parser.add_argument("--window", type=int, metavar="N", help="see only the last N tokens, so that texts have no end")
    parser.add_argument("--sinks", type=int, metavar="N", help=f"with --window: and the first N ({SINKS})")
    add_source(parser)


def check_target(args: argparse.Namespace) -> None:
    """Raise FileExistsError if there is something where a command would write, and it was not told to replace it."""
    there = any(args.target.iterdir()) if args.target.is_dir() else args.target.exists()
    if there and not args.overwrite:
        raise FileExistsError(f"{args.target}: is there already; choose another name or add --overwrite")


def read_text(path: Path) -> str:
    """The text of a file, every newline as it is.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; convert the file first") from None


def show_files(target: Path) -> None:
    """Print what was written, a line a file with its size in bytes."""
    files = sorted(path for path in target.rglob("*") if path.is_file()) if target.is_dir() else [target]
    for file in files:
        print(f"{file.stat().st_size:>16,}  {file}")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen and when they end."""
    group = parser.add_argument_group("how text is made")
    for name, setting in SETTINGS.items():
        group.add_argument(f"--{name}", type=setting.read, default=setting.default, metavar="N", help=setting.help)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def add_drafts(parser: argparse.ArgumentParser) -> None:
    """What drafts tokens."""
    group = parser.add_argument_group("speculative decoding: the same text, faster where drafts are right")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument("--lookup", action="store_true", help="draft what followed earlier: for texts that repeat")
    kind.add_argument(
        "--draft", metavar="MODEL", help="draft with a smaller model of the same tokens, or an EAGLE-3 head"
    )
    group.add_argument("--draft-tokens", type=int, metavar="N", help="tokens drafted a round (lookup 8, model 4)")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """How keys and values are kept, and rows computed."""
    group = parser.add_argument_group("the cache")
    group.add_argument("--cache", metavar="CODEC", help=CACHE_HELP)
    group.add_argument("--layout", choices=("dense", "paged"), default="dense", help="slots, or pages that texts share")
    group.add_argument("--invariant", type=int, metavar="N", help="the same bits in any batch, with room for N tokens")


def cache(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_cache` added, as sessions take it."""
    return {"cache_dtype": args.cache, "layout": args.layout, "invariant": args.invariant}


def drafter(args: argparse.Namespace, model: "Model") -> "Drafter | None":
    """What the options ask for.

    Raises:
        ValueError: a number of drafts without drafts, or a draft model of another vocabulary.
    """
    from forge_jax.drafters import load_drafter
    from forge_jax.generation.speculation import Lookup

    if not args.lookup and not args.draft:
        if args.draft_tokens is not None:
            raise ValueError("--draft-tokens without drafts; add --lookup or --draft MODEL")
        return None
    draft: Any = Lookup()
    if args.draft:
        draft = load_drafter(args.draft, model, dtype=args.dtype, progress=sys.stderr.isatty())
    return draft if args.draft_tokens is None else replace(draft, tokens=args.draft_tokens)


def settings_of(args: argparse.Namespace) -> dict[str, int | float | None]:
    """The values of SETTINGS that were given."""
    return {name: vars(args)[name.replace("-", "_")] for name in SETTINGS}


def sampling(settings: Mapping[str, int | float | None]) -> "SamplingParams":
    """The settings as the library takes them.

    Raises:
        ValueError: a value out of range, or one that would have no effect.
    """
    from forge_jax.sampling import SamplingParams

    given = {name: value for name, value in settings.items() if value is not None}
    useless = [f"--{name}" for name in NEED_TEMPERATURE if name in given]
    if useless and not given["temperature"]:
        raise ValueError(
            f"{' and '.join(useless)} without a temperature: at temperature 0 the best token is taken; "
            "add --temperature 0.7"
        )
    names = ("temperature", *NEED_TEMPERATURE, "repetition-penalty")
    chosen: dict[str, Any] = {name.replace("-", "_"): given[name] for name in names if name in given}
    return SamplingParams(**chosen)


def add_constraint(parser: argparse.ArgumentParser) -> None:
    """What the text must be."""
    group = parser.add_argument_group("what the text must be (one of)").add_mutually_exclusive_group()
    group.add_argument("--json-schema", type=Path, metavar="FILE", help="JSON that this schema accepts")
    group.add_argument("--regex", metavar="PATTERN", help="a match of this regular expression, as a whole")
    group.add_argument("--grammar", type=Path, metavar="FILE", help="a text of this grammar (Lark or GBNF)")
    group.add_argument("--choice", action="append", metavar="TEXT", help="this text, or that of another --choice")


def constraint(args: argparse.Namespace) -> "Constraint | None":
    """The constraint that was asked for.

    Raises:
        ValueError: a schema that is no JSON.
    """
    from forge_jax.sampling import Constraint

    if args.json_schema:
        return Constraint.json(read_text(args.json_schema))
    if args.grammar:
        return Constraint.grammar(read_text(args.grammar))
    if args.regex is not None:
        return Constraint.regex(args.regex)
    return Constraint.choice(args.choice) if args.choice else None


def kernels(asked: str, dtype: str) -> "Kernels | None":
    """What `loading.load` is told of kernels."""
    from forge_jax.kernels import available

    match asked:
        case "exact" | "rounded":
            return asked
        case "auto" if dtype in ("auto", "float32") and available():
            return "rounded"
        case _:
            return None


def load(args: argparse.Namespace, name: str, dtype: str) -> "Model":
    """Load the model that the options ask for, with a bar on a terminal.

    Raises:
        ValueError: a number of sinks without a window; or as `forge_jax.loading.load`.
    """
    from forge_jax import loading

    window, sinks = (vars(args).get(name) for name in ("window", "sinks"))
    if sinks is not None and window is None:
        raise ValueError(f"--sinks {sinks} are the first tokens beside a window; add --window N")
    progress = sys.stderr.isatty()
    loading.make_kernels(progress)
    model = loading.load(
        name,
        dtype=dtype,
        kernels=kernels(vars(args).get("kernels", "plain"), dtype),
        revision=args.revision,
        subfolder=args.subfolder,
        file=args.file,
        allow=args.allow,
        window=window,
        sinks=SINKS if sinks is None else sinks,
        progress=progress,
    )
    if vars(args).get("adapter") is None:
        return model
    from forge_jax.adapting import adapted, load_adapter

    return adapted(model, load_adapter(args.adapter, model))
