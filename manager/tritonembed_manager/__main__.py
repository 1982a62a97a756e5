"""`python -m tritonembed_manager`."""

from tritonembed_manager.cli import main

main()
