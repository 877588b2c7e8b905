"""What medvllm costs, beside what one would use without it: `python -m benchmarks` writes docs/benchmarks.md."""
