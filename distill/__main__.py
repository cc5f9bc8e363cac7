"""`python -m distill`, as torchrun starts it: torchrun -m distill train ..."""

from distill.cli import main

main()
