"""`python -m tritonembed_manager`."""

from tritonembed_manager.server.environment import leave_current_folder

leave_current_folder(started_as_module=True)

from tritonembed_manager.cli import main  # noqa: E402

main()
