"""What the shell offers for MODEL when Tab is pressed. Imports nothing heavy."""

from __future__ import annotations


def complete_model(incomplete: str) -> list[str]:
    """Names of this machine's models that begin so, with or without their owner; the shell adds files itself."""
    from moe_local.store.known import known_models

    names = (name for known in known_models() for name in (known.name, known.short))
    return list(dict.fromkeys(name for name in names if name.startswith(incomplete)))
