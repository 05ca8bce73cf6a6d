"""What a model is trained on: each task is a file."""
