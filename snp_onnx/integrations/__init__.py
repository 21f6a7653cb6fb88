"""Ways in for other tools' users: our verbs under the names and with the conventions that those tools have."""
