"""The command `tritonembed-manager`."""

import sys


def main() -> None:
    """Run the command line; without the packages it needs, say in one line which to install."""
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("tritonembed-manager needs more than the client library: pip install 'tritonembed[manager]'")
    from tritonembed_manager.commands import app
    from tritonembed_manager.engine_arguments import with_dashes

    app(args=[with_dashes(argument) for argument in sys.argv[1:]])
