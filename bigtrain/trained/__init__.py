"""What a trained model is used for: open, evaluate, generate, sample, export, import."""
