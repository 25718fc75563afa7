"""What a run was worth: summaries, the terminal table, the report."""
