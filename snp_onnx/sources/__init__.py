"""Sources: every form in which samples come, matched to the model's inputs and brought to batches."""
