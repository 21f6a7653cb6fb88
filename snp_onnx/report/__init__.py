"""Reports: what the verbs found, as tables for people and JSON for programs."""
