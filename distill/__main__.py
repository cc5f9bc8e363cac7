"""Entry point of `python -m distill`, as used by torchrun: torchrun -m distill train ..."""

from distill.cli import main

main()
