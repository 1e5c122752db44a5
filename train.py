"""`minigpt4 train` as a file, for torchrun: torchrun --nproc-per-node N train.py --cfg-path X [--options ...]"""

import sys

from minigpt4.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
