"""The results of a run for people and programs: outputs, run record, status, report."""
