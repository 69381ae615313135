"""The engine that puts the next row wherever one has ended; what it does is told in `engine`."""
