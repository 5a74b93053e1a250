"""A tool's call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallPiece:
    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str
