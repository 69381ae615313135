"""What people and trainers read: captions, labels, tables, and data sets."""
