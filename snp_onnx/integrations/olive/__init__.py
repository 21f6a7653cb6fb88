"""A pass for Olive's workflows: `prune_pass`, which needs olive-ai, with its options, data, files and configuration."""
