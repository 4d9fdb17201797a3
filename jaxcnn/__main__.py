"""`python -m jaxcnn`: the command line."""

import sys

from jaxcnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
