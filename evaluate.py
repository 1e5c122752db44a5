"""`minigpt4 evaluate` as a file: python evaluate.py [MODEL] [--cfg-path X] [--options ...]"""

import sys

from minigpt4.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
