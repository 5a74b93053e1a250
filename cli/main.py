"""`moe-local`: where the process starts. The commands are in app.py, imported once Ctrl-C is seen to."""

from __future__ import annotations

from .interrupts import end_quietly


def main() -> None:
    end_quietly()
    import sys

    from moe_local.errors import MoeLocalError

    from .app import app
    from .output import echo, prepare_streams

    prepare_streams()
    try:
        app()
    except MoeLocalError as error:  # of a help page, which no command guards
        echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    finally:
        end_quietly()  # while the interpreter takes itself down


def __getattr__(name: str) -> object:
    if name == "app":
        from .app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
