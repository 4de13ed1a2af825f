"""`python -m sidecar` is `slipstream`."""

from sidecar.cli.main import main

if __name__ == "__main__":
    main()
