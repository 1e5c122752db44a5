"""`python -m minigpt4`, and `torchrun -m minigpt4 train`: the same as the command `minigpt4`."""

from minigpt4.cli import main

if __name__ == "__main__":
    main()
