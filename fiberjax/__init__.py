"""Trust regions at several scales at once for language-model policy optimisation."""
