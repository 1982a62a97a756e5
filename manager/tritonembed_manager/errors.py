"""What the manager says before it stops: always one readable line, and an exit code."""

EXIT_FAILED = 1
EXIT_BAD_START = 2


class ManagerError(Exception):
    """The manager stops with this line. `exit_code` is 2 for what the caller can put right before a start."""

    exit_code = EXIT_FAILED


class StartError(ManagerError):
    """An option, a model, a port or the machine is wrong: nothing is served. Exit code 2."""

    exit_code = EXIT_BAD_START
