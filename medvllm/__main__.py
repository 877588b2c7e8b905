"""``python -m medvllm``."""

from medvllm.cli import main

main()
