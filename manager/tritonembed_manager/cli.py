"""The command `tritonembed-manager`."""

import sys

from tritonembed_manager.server.environment import leave_current_folder


def main() -> None:
    """Run the command line. If its packages are missing, exit with a line that names the package to install."""
    leave_current_folder()
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("tritonembed-manager needs more than the client library: pip install 'tritonembed[manager]'")
    from tritonembed_manager.commands.app import app
    from tritonembed_manager.server.vllm_arguments import one_value_each, with_dashes

    app(args=one_value_each([with_dashes(argument) for argument in sys.argv[1:]]))
