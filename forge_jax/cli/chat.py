"""`forge-jax chat`: a conversation at the terminal, or through a pipe. Answers go to stdout, all else to stderr."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from forge_jax.cli import options

if TYPE_CHECKING:
    from forge_jax.cli.conversation import Conversation

HELP = """\
/clear            forget the conversation, keep the system message
/system TEXT      set the system message; without a text, remove it
/regenerate       another answer to the last question
/set NAME VALUE   change how text is made; /set alone shows the settings
/stats            speed and memory of the last answer
/save FILE        write the conversation as JSON
/load FILE        go on with a saved conversation
/exit             leave (or Ctrl-D)
Ctrl-C stops an answer; what is there of it stays. Anything else is a message."""


def add(commands: options.Commands) -> None:
    """Describe the command."""
    parser = options.command(
        commands,
        "chat",
        run,
        "talk with a model",
        "forge-jax chat -m org/name --system 'Answer in one sentence.'",
    )
    options.add_model(parser)
    options.add_settings(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system message")


def run(args: argparse.Namespace) -> int:
    """Load the model and answer until the input ends; 1 if something went wrong in a conversation through a pipe."""
    settings = options.settings_of(args)
    options.sampling(settings)
    model = options.load(args, args.model, args.dtype)
    if model.tokenizer is None or model.tokenizer.chat_template is None:
        raise ValueError(
            f"{args.model}: no chat template, so the model was not made for conversations; use forge-jax generate"
        )

    from forge_jax.cli.conversation import Conversation

    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  line editing and history for input()
        sizes = f"{model.config.get('model_type')}, {len(model.spec.layers)} layers, context {model.spec.max_seq_len}"
        note(f"{args.model}: {sizes}\n/help shows the commands, Ctrl-D leaves")
    chat = Chat(Conversation(model, settings, args.stop, args.system))
    chat.loop(terminal)
    return int(chat.failed and not terminal)


class Chat:
    """Reads lines and does what they say."""

    def __init__(self, conversation: "Conversation") -> None:
        self.conversation = conversation
        self.failed = False
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(HELP),
            "/clear": self.clear,
            "/system": self.system,
            "/regenerate": lambda _: self.show(conversation.regenerate()),
            "/set": self.set,
            "/stats": lambda _: note(conversation.figures),
            "/save": self.save,
            "/load": self.load,
        }

    def loop(self, terminal: bool) -> None:
        """Answer line after line until the input ends or /exit."""
        for line in typed_lines() if terminal else piped_lines():
            word, _, rest = line.partition(" ")
            if word in ("/exit", "/quit"):
                return
            try:
                if word in self.commands:
                    self.commands[word](rest.strip())
                elif word.startswith("/"):
                    raise ValueError(f"no command {word}; /help shows those there are (a space before / makes it text)")
                elif line.strip():
                    self.show(self.conversation.ask(line.strip()))
            except (ValueError, OSError) as error:
                self.failed = True
                note(f"forge-jax: {error}")

    def show(self, pieces: Iterator[str]) -> None:
        """Print an answer as it comes. Ctrl-C ends it and nothing else."""
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
                for piece in pieces:
                    print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            note("(stopped)")

    def clear(self, _: str) -> None:
        self.conversation.clear()
        note("(cleared)")

    def system(self, content: str) -> None:
        self.conversation.set_system(content)
        note("(system message set)" if content else "(no system message)")

    def set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if name:
            self.conversation.change(name, value.strip())
        shown = {name: self.conversation.settings[name]} if name else self.conversation.settings
        note("\n".join(f"{key} {'none' if held is None else held}" for key, held in shown.items()))

    def save(self, path: str) -> None:
        self.conversation.save(named(path))
        note(f"(saved to {path})")

    def load(self, path: str) -> None:
        self.conversation.load(named(path))
        note(f"({len(self.conversation.messages)} messages from {path})")


def named(path: str) -> Path:
    """The path of a command; ValueError if there is none."""
    if not path:
        raise ValueError("which file? /save FILE, /load FILE")
    return Path(path).expanduser()


def note(line: str) -> None:
    """Say something that is no answer."""
    print(line, file=sys.stderr, flush=True)


def piped_lines() -> Iterator[str]:
    """Every line of stdin."""
    for line in sys.stdin:
        yield line.removesuffix("\n")


def typed_lines() -> Iterator[str]:
    """What is typed at a prompt until Ctrl-D. Ctrl-C empties the line."""
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /exit leaves)")
        except EOFError:
            note("")
            return
