"""`python -m solon`, which is also what `accelerate launch -m solon` starts in every process."""

from solon.cli import main

if __name__ == "__main__":
    main()
