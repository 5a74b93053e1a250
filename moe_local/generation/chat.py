"""A conversation: messages, the model's own template, and a KV cache that lives from turn to turn."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from moe_local.checkpoint.json_file import parse_json
from moe_local.checkpoint.regular import read_regular
from moe_local.config import whole
from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.generation.sampling import Sampling
from moe_local.generation.text import Generation, KVState, TextGenerator

_MOST = 48 << 20  # bytes of a saved conversation
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class ChatSession:
    """One conversation with a loaded model."""

    def __init__(self, generator: TextGenerator, sampling: Sampling, *, system: str | None = None) -> None:
        self._generator = generator
        self._state = KVState()
        self.sampling = sampling
        self.messages: list[Message] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replaces the system message; the conversation goes on."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def send(
        self,
        text: str,
        *,
        on_text: Callable[[str], None] | None = None,
        interrupt: threading.Event | None = None,
    ) -> Generation:
        """Adds a user message and answers it. On an error the conversation is as it was before."""
        return self._answer([*self.messages, {"role": "user", "content": text}], on_text, interrupt)

    def regenerate(
        self, *, on_text: Callable[[str], None] | None = None, interrupt: threading.Event | None = None
    ) -> Generation:
        """Answers the last user message again, in place of the last answer."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise MoeLocalError("there is no answer to regenerate", remedy="ask something first")
        return self._answer(self.messages[:-1], on_text, interrupt)

    def _answer(
        self, messages: list[Message], on_text: Callable[[str], None] | None, interrupt: threading.Event | None
    ) -> Generation:
        ids = render(self._generator, messages)
        result = self._generator.generate(ids, self.sampling, on_text=on_text, interrupt=interrupt, state=self._state)
        self.messages = [*messages, {"role": "assistant", "content": result.text}]
        return result

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._state.clear()

    def save(self, file: Path) -> None:
        """Writes the messages as JSON; the file appears whole or not at all."""
        text = json.dumps(self.messages, ensure_ascii=False, indent=2)
        try:
            with whole(file) as stream:
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
        and value.keys() == {"role", "content"}
        and value["role"] in ("system", "user", "assistant")
        and isinstance(value["content"], str)
    )


def has_template(generator: TextGenerator) -> bool:
    return bool(generator.tokenizer.chat_template)


def prompt_ids(
    generator: TextGenerator, prompt: str | Sequence[Message] | Sequence[int], *, raw: bool, system: str | None
) -> list[int]:
    """Token ids of a prompt: text as a user's message in the model's chat template, or `raw` text to go on from.

    Messages are put into the template, token ids are taken as they are.
    """
    if not isinstance(prompt, str):
        if all(isinstance(token, int) for token in prompt):
            return [int(token) for token in prompt if isinstance(token, int)]
        return render(generator, [message for message in prompt if isinstance(message, dict)])
    if raw or not has_template(generator):
        if system:
            raise MoeLocalError("a system message needs a chat template", remedy="put it into the prompt")
        return generator.encode(prompt)
    messages = [{"role": "system", "content": system}] if system else []
    return render(generator, [*messages, {"role": "user", "content": prompt}])


def render(generator: TextGenerator, messages: list[Message]) -> list[int]:
    """Token ids of a conversation in the model's template, ready for its answer."""
    if not has_template(generator):
        raise CheckpointError(
            "this model has no chat template: it continues text and does not chat",
            remedy="use `moe-local generate --raw`, or an instruct model",
        )
    try:
        text = generator.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates are programs, and refuse with exceptions of their own
        raise MoeLocalError(f"the model's chat template refuses this conversation ({error})") from error
    return generator.encode(text, special=False)
