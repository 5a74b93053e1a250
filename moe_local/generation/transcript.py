"""What was said in a conversation, and the file that keeps it. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import read_regular
from moe_local.errors import MoeLocalError
from moe_local.files import atomic_write
from moe_local.generation.messages import Message
from moe_local.generation.sampling import Sampling

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # by which a message has an answer's reasoning
_MOST = 48 << 20  # bytes of a saved conversation


class Transcript:
    """The messages of a conversation, the system's first, and how the tokens of its next answer are chosen."""

    def __init__(self, sampling: Sampling, system: str | None = None) -> None:
        self.sampling = sampling
        self.messages: list[Message] = []
        self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system message's text; None where the conversation begins without one."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replaces the system message; the conversation goes on."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def unanswered(self) -> list[Message]:
        """The messages without the last answer. Raises MoeLocalError where there is none."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise MoeLocalError("there is no answer to regenerate", remedy="ask something first")
        return self.messages[:-1]

    def undo(self) -> None:
        """Forgets the last message of the user's and what came after. Raises MoeLocalError where there is none."""
        asked = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise MoeLocalError("there is nothing to undo", remedy="say something first")
        self.messages = self.messages[: asked[-1]]

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def save(self, file: Path) -> None:
        """Writes the messages as JSON; the file appears whole or not at all."""
        text = json.dumps(self.messages, ensure_ascii=False, indent=2)
        try:
            with atomic_write(file) as stream:
                stream.write(text.encode())
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise MoeLocalError(f"cannot write {file} ({error})", remedy="choose another place") from error

    def load(self, file: Path) -> None:
        """Takes up messages that `save` wrote. Raises MoeLocalError for any other file."""
        try:
            messages = parse_json(read_regular(file, _MOST))
        except OSError as error:
            raise MoeLocalError(f"cannot read {file}: {error.strerror}", remedy="check the name") from error
        except ValueError as error:
            raise MoeLocalError(f"{file} is not JSON ({error})", remedy="load what /save wrote") from error
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise MoeLocalError(f"{file} does not hold chat messages", remedy="load what /save wrote")
        self.messages = messages


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"role", "content"} <= value.keys() <= {"role", "content", *REASONING_KEYS}
        and value["role"] in ("system", "user", "assistant")
        and all(isinstance(text, str) for text in value.values())
    )
