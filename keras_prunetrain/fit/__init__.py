"""What a training is: who makes the model smaller, and what is recorded."""
