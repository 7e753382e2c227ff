"""Looking back at a run: kept rollouts under any gate, token by token; nothing here trains."""
