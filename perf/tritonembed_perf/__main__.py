"""`python -m tritonembed_perf` is `tritonembed-bench`."""

from tritonembed_manager.server.environment import leave_current_folder

if __name__ == "__main__":
    leave_current_folder(started_as_module=True)

from tritonembed_perf.cli import main

if __name__ == "__main__":
    main()
