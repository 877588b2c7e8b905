"""What `medvllm run` is made of: the options of tasks, and how answers are printed."""
