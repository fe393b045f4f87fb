"""``python -m dmsh_serving`` is ``dmsh-serve``."""

from dmsh_serving.cli import main

main()
