"""``python -m medvllm.cli``."""

from medvllm.cli import main

main()
