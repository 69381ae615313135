"""What people see and where they see it: lines, bars, sizes; knows no run."""
