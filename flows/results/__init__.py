"""What a run leaves for people and programs: outputs, record, status, report."""
