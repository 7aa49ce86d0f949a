"""The command line `forge-jax`. Chooses a command and turns errors into one line; the commands do the rest.

Nothing at the top of these modules imports jax, so that `--help` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import forge_jax
from forge_jax.cli import chat, convert, doctor, evaluate, generate, inspect, quantize, verify

EXAMPLES = """examples:
  forge-jax generate "The capital of France is"
  forge-jax chat -m org/name
  forge-jax inspect org/name --context 8192
  forge-jax convert org/name model.gguf --type Q8_0
  forge-jax quantize org/name model.gguf --scheme Q4_K_M
  forge-jax verify org/name
  forge-jax evaluate model.gguf --reference org/name --text wiki.txt
  forge-jax doctor

MODEL is a directory, a file (GGUF, safetensors, PyTorch), a hub id ("org/name", "org/name@revision",
"org/name:Q4_K_M"), or "smollm2", a small model that is downloaded when it is first used.
"""
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 and the number of the signal, as shells count


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    out = argparse.ArgumentParser(
        "forge-jax",
        description="Load a language model of any format and run it on JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action="version", version=f"forge-jax {forge_jax.__version__}")
    commands = out.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (generate, chat, inspect, convert, quantize, verify, evaluate, doctor):
        command.add(commands)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character still gets the rest
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough (`| head`); Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        if args.debug:
            raise
        print(f"forge-jax: {error}", file=sys.stderr)
        return 1
