"""How a server is to behave. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from moe_local.units import MIB

ANY = "*"


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens, whom it answers, and its limits."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    api_key: str | None = None  # None: none is asked for
    aliases: tuple[str, ...] = ()  # names that the model goes by as well; `ANY`: whatever is asked for
    hosts: tuple[str, ...] = ()  # names beside the usual ones by which clients may call the server
    origins: tuple[str, ...] = ()  # of other pages that may ask, as "https://example.org"
    queue: int = 128  # requests that may wait
    seconds: float = 600.0  # that a request may take
    grace: float = 30.0  # seconds for the answers under way when the server is to end
    body: int = 8 * MIB  # bytes of a request at most

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches the server."""
        return is_loopback(self.host)


@dataclass
class Names:
    """By which names a client may ask for the model."""

    name: str
    aliases: tuple[str, ...] = field(default_factory=tuple)

    @property
    def listed(self) -> list[str]:
        """The model's own name first."""
        return [self.name, *(alias for alias in self.aliases if alias != ANY)]

    def known(self, asked: str) -> bool:
        """Whether it is meant by what a client asked for."""
        return ANY in self.aliases or asked in self.listed


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is this machine's own and nobody else's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
