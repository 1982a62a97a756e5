"""`python -m tritonembed_perf` is `tritonembed-bench`."""

from tritonembed_perf.cli import main

if __name__ == "__main__":
    main()
