"""``python -m fedlearn``: the command line, also as the script that torchrun starts."""

import sys

if __name__ == "__main__":
    from fedlearn.cli import main

    sys.exit(main())
