"""Verbs: what a user does. Each reads like the chain trace, measure, decide, rewrite, verify."""
