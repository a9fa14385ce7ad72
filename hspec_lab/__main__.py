"""`python -m hspec_lab` is `hspec`."""

import sys

from hspec_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
