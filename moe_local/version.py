"""Which release of moe-local this is."""

__version__ = "0.1.0"
