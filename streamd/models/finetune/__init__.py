"""Fine-tuning of an INT8 model against its float model, without labels, in PyTorch."""
