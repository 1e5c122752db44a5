"""`minigpt4 demo` as a file: python demo.py [MODEL] [--cfg-path X] [--options ...]"""

import sys

from minigpt4.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
