"""Bad input by the thousand: `python -m tests.fuzz`."""
