"""``python -m dmsh_model`` is ``dmsh-train``: torchrun starts modules."""

from dmsh_model.cli import main

main()
